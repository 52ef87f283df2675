# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/check_data.py does: it finds what is wrong with the data of a config before a training does."""

import json
import multiprocessing
import os
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from mmengine.registry import DATASETS

from ..datasets.faults import Fault, coco_faults, sample_faults
from ..errors import UserError
from ..weights import written_whole
from .checks import check_data as check_paths
from .config import PHASES, load_config
from .prepare import check_phase, import_toolbox
from .screen import Screen, bar

SEGMENTATION_IGNORED = (0, 255)


def innermost(dataset) -> list:
    """The configs of the data sets inside one, which may be a wrapper around others."""
    inner = [dataset[key] for key in ('dataset', 'datasets') if key in dataset]
    if not inner:
        return [dataset]
    parts = [part for value in inner for part in (value if isinstance(value, (list, tuple)) else [value])]
    return [found for part in parts for found in innermost(part)]


def build(config):
    """Builds a data set without its transforms and without leaving out samples."""
    config = dict(config)
    config.update(pipeline=[], test_mode=True, lazy_init=False)
    return DATASETS.build(config)


def annotation_file(config) -> Path | None:
    """The annotation file in COCO's format of a data set, if it has one."""
    name = config.get('ann_file') or ''
    return Path(os.path.join(config.get('data_root') or '', name)) if name.endswith('.json') else None


def classes_of(config):
    """The names of the classes that a data set has by its config, or else by its type."""
    given = (config.get('metainfo') or {}).get('classes')
    if given:
        return given
    with DATASETS.switch_scope_and_registry(None) as registry:
        return getattr(registry.get(config['type']), 'METAINFO', {}).get('classes')


def jobs_of(dataset) -> list[tuple]:
    """What is to be looked at for each sample: image, size, segmentation map, number of classes, values left out."""
    classes = len(dataset.metainfo.get('classes') or ()) or None
    zero = getattr(dataset, 'reduce_zero_label', False)
    ignored = SEGMENTATION_IGNORED if zero else SEGMENTATION_IGNORED[1:]
    jobs = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        size = (info['height'], info['width']) if 'height' in info and 'width' in info else None
        most = None if classes is None else classes if zero else classes - 1
        jobs.append((info['img_path'], size, info.get('seg_map_path'), most, ignored))
    return jobs


def maps_without_image(dataset) -> list[Fault]:
    """Finds segmentation maps whose images are missing, where the toolbox takes what is in the folder of images."""
    prefix = getattr(dataset, 'data_prefix', None)
    if getattr(dataset, 'ann_file', None) or not isinstance(prefix, dict) or not prefix.get('seg_map_path'):
        return []
    images, maps = Path(prefix['img_path']), Path(prefix['seg_map_path'])
    faults = []
    for path in sorted(maps.rglob(f'*{dataset.seg_map_suffix}')):
        name = str(path.relative_to(maps)).removesuffix(dataset.seg_map_suffix)
        image = images / f'{name}{dataset.img_suffix}'
        if not image.is_file():
            faults.append(Fault('missing file', str(image), f'the file is not there, and its map {path.name} is'))
    return faults


def look(job) -> list[Fault]:
    return sample_faults(*job)


class Check:
    """The check of the data sets of a config."""

    def __init__(self, screen: Screen, workers: int):
        self.screen, self.workers = screen, workers
        self.faults: list[Fault] = []
        self.samples = 0

    def phase(self, name: str, config) -> None:
        """Checks the data of one phase: annotations as they are in the file, then all images."""
        for part in innermost(config):
            annotations = annotation_file(part)
            if annotations is not None:
                self.screen.now(f'{name}: {annotations}')
                self.faults += coco_faults(annotations, classes_of(part))
            try:
                dataset = build(part)
                jobs = jobs_of(dataset)
                self.faults += maps_without_image(dataset)
            except Exception as error:  # a faulty annotation leads to anything
                if not self.faults:
                    text = (str(error).strip().splitlines() or [''])[-1]
                    place = str(annotations or part.get('data_root') or part['type'])
                    self.faults.append(Fault('data set that cannot be read', place, f'{type(error).__name__}: {text}'))
                jobs = self._images_of(annotations, part)
            self._images(name, jobs)

    def _images_of(self, annotations, part) -> list[tuple]:
        """The images that an annotation file names, where the toolbox could not read it."""
        from ..datasets.faults import read_annotations

        content, _ = read_annotations(annotations) if annotations is not None else (None, [])
        prefix = part.get('data_prefix') or {}
        folder = Path(part.get('data_root') or '', prefix.get('img', '') if isinstance(prefix, dict) else prefix)
        names = [image.get('file_name') for image in (content or {}).get('images', ()) if isinstance(image, dict)]
        return [(folder / name, None) for name in names if isinstance(name, str)]

    def _images(self, name: str, jobs: list[tuple]) -> None:
        told = time.monotonic()
        with multiprocessing.get_context('fork' if sys.platform == 'linux' else 'spawn').Pool(self.workers) as pool:
            for n, found in enumerate(pool.imap(look, jobs, chunksize=max(1, min(64, len(jobs) // 100))), start=1):
                self.faults += found
                self.screen.now(f'{bar(n / len(jobs))} {name}: {n} of {len(jobs)} samples, {len(self.faults)} faults')
                if not self.screen.live and time.monotonic() - told > 30:
                    told = time.monotonic()
                    self.screen.say(f'{name}: {n} of {len(jobs)} samples, {len(self.faults)} faults')
        self.samples += len(jobs)
        self.screen.say(f'{name}: {len(jobs)} samples')


def report(faults: list[Fault], show: int) -> str:
    """The faults by kind, with some lines of each."""
    by_kind = defaultdict(list)
    for fault in faults:
        by_kind[fault.kind].append(fault)
    lines = []
    for kind, found in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        lines.append(f'{kind}: {len(found)}')
        lines += [f'    {fault}' for fault in found[:show]]
        if len(found) > show:
            lines.append(f'    and {len(found) - show} more')
    return '\n'.join(lines)


def check_data(config, *, phases=None, workers=None, show=10, out=None, cfg_options=()) -> list[Fault]:
    """Checks the data of a config and prints a report; where something is wrong, it ends the process with status 1."""
    cfg = load_config(config, cfg_options)
    import_toolbox(cfg)
    wanted = phases.split(',') if phases else [phase for phase in PHASES if cfg.get(f'{phase}_dataloader')]
    unknown = [phase for phase in wanted if phase not in PHASES]
    if unknown:
        raise UserError(f'--phases {phases}: {unknown[0]!r} is not one of {", ".join(PHASES)}')
    check_phase(cfg, wanted)
    check_paths(cfg, wanted)
    start, check = time.monotonic(), Check(Screen(), workers or os.cpu_count())
    done = []
    for phase in wanted:
        dataset = cfg[f'{phase}_dataloader'].dataset
        places = [{key: value for key, value in part.items() if key != 'pipeline'} for part in innermost(dataset)]
        if places in done:  # validation and test are often the same
            continue
        done.append(places)
        check.phase(phase, dataset)
    counts = Counter(fault.kind for fault in check.faults)
    seconds = time.monotonic() - start
    if out is not None:
        content = dict(config=str(config), samples=check.samples, seconds=round(seconds, 1), counts=counts)
        with written_whole(Path(out)) as partial:
            partial.write_text(json.dumps({**content, 'faults': [fault._asdict() for fault in check.faults]}, indent=1))
    told = f'{check.samples} samples in {seconds:.0f} s: '
    if check.faults:
        print(report(check.faults, show))
        raise UserError(f'{told}{len(check.faults)} faults in {len({fault.file for fault in check.faults})} files')
    print(f'{told}nothing is wrong')
    return check.faults
