# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/check_data.py does: it reads every file of the data of a config, and tells all that is wrong with it."""

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from ..datasets.faults import Fault
from ..datasets.survey import leaf_datasets, survey
from ..errors import UserError
from ..weights import written_whole
from .config import PHASES, load_config
from .prepare import import_toolbox
from .screen import Screen

PAUSE = 30  # seconds between two lines on the progress, where there is no terminal
CHUNK = 16  # samples that a process takes at a time


def check_data(config, *, phases=None, workers=None, show=10, out=None, cfg_options=()) -> bool:
    """Prints what is wrong with the data of a config and returns whether nothing is."""
    start = time.monotonic()
    if workers is not None and workers < 1:
        raise UserError(f'--workers {workers}: at least 1')
    cfg = load_config(config, cfg_options)
    import_toolbox(cfg)
    faults, reads = [], {}
    for phase, dataset in _datasets(cfg, phases):
        found, samples = survey(dataset)
        print(f'{phase}: {len(samples)} samples of {dataset["type"]}')
        faults += found
        reads.update(dict.fromkeys(samples))  # once, though two phases may share it
    for found in _progress(_read(list(reads), workers or _cores()), len(reads)):
        faults += found
    faults = list(dict.fromkeys(faults))
    seconds = time.monotonic() - start
    _tell(faults, len(reads), seconds, show)
    if out is not None:
        _write(out, config, faults, len(reads), seconds)
    return not faults


def _datasets(cfg, phases) -> list[tuple[str, dict]]:
    """Lists (phase, config) of the data sets, wrappers taken off; `phases` are as on the command line."""
    known = [phase for phase in PHASES if cfg.get(f'{phase}_dataloader')]
    asked = known if phases is None else phases.split(',')
    for phase in asked:
        if phase not in known:
            raise UserError(f'--phases {phases}: {cfg.filename} has data for {",".join(known)}')
    found = {}
    for phase in asked:
        for dataset in leaf_datasets(cfg[f'{phase}_dataloader'].dataset):
            same = next((other for other in found.values() if other[1] == dataset), None)
            if same:
                same[0].append(phase)
            else:
                found[len(found)] = ([phase], dataset)
    return [(', '.join(dict.fromkeys(names)), dataset) for names, dataset in found.values()]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _read_one(read) -> list[Fault]:
    function, *args = read
    return list(function(*args))


def _one_thread():
    import cv2

    cv2.setNumThreads(0)


def _read(reads, workers) -> Iterator[list[Fault]]:
    """Yields the faults of each sample, which are read by so many processes."""
    if workers == 1 or len(reads) <= CHUNK:
        yield from map(_read_one, reads)
        return
    try:
        with ProcessPoolExecutor(workers, initializer=_one_thread) as pool:
            yield from pool.map(_read_one, reads, chunksize=CHUNK)
    except BrokenProcessPool as error:
        raise UserError('a process that reads images was ended, perhaps for memory: try fewer --workers') from error


def _progress(results, total) -> Iterator:
    """Yields the results, with a bar on a terminal and a line now and then elsewhere."""
    if sys.stdout.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True) as bar:
            yield from bar.track(results, total=total)
        return
    screen, last = Screen(), time.monotonic()
    for done, result in enumerate(results, start=1):
        yield result
        if time.monotonic() - last > PAUSE:
            last = time.monotonic()
            screen.say(f'{done} of {total} samples read')


def _by_kind(faults) -> dict[str, list[Fault]]:
    kinds = defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
    return dict(sorted(kinds.items()))


def _tell(faults, samples, seconds, show):
    kinds = _by_kind(faults)
    for kind, found in kinds.items():
        for fault in found[:show]:
            print(fault)
        if len(found) > show:
            print(f'... and {len(found) - show} more: {kind}')
    for kind, found in kinds.items():
        print(f'{len(found):8d}  {kind}')
    print(f'{len(faults) or "no"} faults in {samples} samples, {seconds:.1f} s')


def _write(out, config, faults, samples, seconds):
    """Writes the whole report as JSON."""
    content = dict(
        config=str(config),
        samples=samples,
        seconds=round(seconds, 2),
        counts={kind: len(found) for kind, found in _by_kind(faults).items()},
        faults=[vars(fault) for fault in faults],
    )
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            partial.write_text(json.dumps(content, indent=1))
    except OSError as error:
        raise UserError(f'--out {out} could not be written: {error.strerror}') from error
