# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Faults of classification data: folders that are named for their classes, or a list of files with their classes."""

from collections.abc import Iterator
from pathlib import Path

from .fault import Fault, brief, read_bytes


def folder_faults(root, extensions, classes, images: list) -> Iterator[Fault]:
    """Yields what is wrong with a folder that has a folder for each class, and adds its images to `images`.

    `classes` are the names of the data set's classes, or None where the folders name them. ImageNet's classes are not
    called as its folders are; then only their number can be compared.
    """
    root = Path(root)
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        yield Fault(str(root), 'missing file', f'cannot be listed ({error.strerror})')
        return
    names = {folder.name for folder in folders}
    if classes and names & set(classes):
        for folder in folders:
            if folder.name not in classes:
                yield Fault(str(folder), 'unknown class', f'is a folder of no class ({brief(list(classes))})')
        for name in sorted(set(classes) - names):
            yield Fault(str(root / name), 'missing file', 'no such folder, and there is a class of that name')
    elif classes and len(classes) != len(folders):
        yield Fault(str(root), 'unknown class', f'has {len(folders)} folders, and the data set {len(classes)} classes')
    for folder in folders:
        found = sorted(path for path in folder.rglob('*') if path.name.lower().endswith(tuple(extensions)))
        images += [path for path in found if not path.is_dir()]


def list_faults(path, root, classes, images: list, *, labelled=True) -> Iterator[Fault]:
    """Yields what is wrong with a list of files, each with the number of its class; adds them to `images`."""
    content, fault = read_bytes(path)
    if fault:
        yield fault
        return
    lines = content.decode(errors='replace').split('\n')
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, start=1):
        name, _, label = line.strip().rpartition(' ') if labelled else (line.strip(), '', '0')
        if not name:
            yield Fault(
                str(path), 'line of a list', f'line {number} is {brief(line)}, not the name of a file and a class'
            )
            continue
        images.append(Path(root, name))
        try:
            known = 0 <= int(label) < (len(classes) if classes else 1 << 30)
        except ValueError:
            known = False
        if not known:
            rule = f'from 0 to {len(classes) - 1}' if classes else 'from 0 on'
            yield Fault(
                str(path), 'unknown class', f'line {number} has class {brief(label)}, classes are numbers {rule}'
            )
