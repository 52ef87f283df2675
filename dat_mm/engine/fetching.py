# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Fetching samples: each is drawn with its own random numbers, and a bad one is named by its file, or skipped.

A sample is bad if the rules of `datasets.faults` find a fault in its files, or if its pipeline raises what bad data
raises. Other exceptions, such as a TypeError or a NameError, are mistakes of a program or of a config and stay as they
are.
"""

import multiprocessing
import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from logging import ERROR, WARNING
from unittest import mock

import cv2
import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..datasets.faults import UNNOTICED, Fault, image_faults, instance_fault, map_faults, shown
from ..datasets.survey import leaf_datasets, survey
from ..errors import UserError
from .seeds import seeded

# What decoders and transforms raise on bad data. Among these are the errors of Pillow; SyntaxError: its PNG reader's.
DATA_ERRORS = (OSError, ValueError, AssertionError, IndexError, ArithmeticError, RuntimeError, EOFError, SyntaxError)
DATA_ERRORS += (cv2.error, struct.error)
PROGRAM_ERRORS = (UserError, NotImplementedError, RecursionError)


class BadSample(UserError):
    """A sample that cannot be used: its file, and what is wrong with it, in one line.

    torch raises an exception of a worker again with the worker's whole traceback as its message. Only the line is kept.
    """

    def __init__(self, message: str):
        super().__init__(message.rpartition(f'{type(self).__module__}.{type(self).__qualname__}: ')[2].strip())


class Skipped:
    """The different bad samples that the workers of a process have passed over, of which a number is allowed."""

    def __init__(self, allowed: int = 0):
        if isinstance(allowed, bool) or not isinstance(allowed, int) or allowed < 0:
            raise UserError(f'skip_bad_samples={allowed!r} is not a whole number of samples, 0 or more')
        self.allowed = allowed
        # how many there are, and which
        self.places = multiprocessing.Array('q', allowed + 1) if allowed else None

    def add(self, place: int, bad: BadSample) -> None:
        """Counts a bad sample unless it was met before, and raises where it is one too many."""
        if not self.allowed:
            raise bad
        with self.places.get_lock():
            count = self.places[0]
            if place in self.places[1 : count + 1]:
                return
            if count == self.allowed:
                raise BadSample(f'{bad} (the bad sample after the {count} that skip_bad_samples={count} allows)')
            self.places[count + 1] = place
            self.places[0] = count + 1
        level = WARNING if is_main_process() else ERROR  # mmengine shows no less of the other processes
        print_log(f'bad sample {count + 1} of at most {self.allowed}: {bad}', 'current', level)


class Watched(Compose):
    """A pipeline that raises BadSample, with the name of the file, for a sample that cannot be used."""

    def __init__(self, transforms, annotations=''):
        super().__init__(transforms)
        self.annotations = annotations  # the file that the samples are read from, if there is one

    def __call__(self, info: dict):
        image = info.get('img_path')
        # a map of segments is no map of labels
        label_map = None if 'segments_info' in info else info.get('seg_map_path')
        name = shown(image) if isinstance(image, str) else f'sample {info.get("sample_idx")}'
        record = f'{shown(self.annotations)}: the objects of {name}' if self.annotations else name
        self._check_instances(info, record)
        try:
            sample = self._run(info)
        except PROGRAM_ERRORS:
            raise
        except Exception as error:
            fault = first_fault(image, label_map)
            if fault:
                raise BadSample(str(fault)) from error
            if not isinstance(error, DATA_ERRORS):
                raise
            raise BadSample(f'{name}: {summary(error)}') from error
        reason = sample_fault(sample)
        if reason:
            raise BadSample(f'{record}: {reason}')
        return sample

    def _check_instances(self, info, record):
        # of panoptic data the masks are in a map
        masks = 'segments_info' not in info and any(getattr(step, 'with_mask', False) for step in self.transforms)
        for instance in info.get('instances') or ():
            reason = instance_fault(instance, (info.get('width'), info.get('height')), masks=masks)
            if reason:
                raise BadSample(f'{record}: {reason}')

    def _run(self, sample):
        """Runs the transforms; a map is compared with its image when it is loaded, before both are cut to one size."""
        for step in self.transforms:
            loaded = 'gt_seg_map' in sample
            sample = step(sample)
            if sample is None:
                return None
            if not loaded and 'gt_seg_map' in sample and 'ori_shape' in sample:
                (height, width), (image_height, image_width) = sample['gt_seg_map'].shape, sample['ori_shape'][:2]
                if (height, width) != (image_height, image_width):
                    what = f'is {width} x {height} pixels, and its image {image_width} x {image_height}'
                    raise BadSample(f'{shown(sample["seg_map_path"])}: {what}')
        return sample


def first_fault(image, label_map=None):
    """Finds the first fault in the files of a sample; a file that is not on this disk is not looked at."""
    paths = [path for path in (image, label_map) if path]
    if not paths or not all(isinstance(path, str) and '://' not in path for path in paths):
        return None
    return next(map_faults(image, label_map) if label_map else image_faults(image), None)


def summary(error: Exception) -> str:
    """Writes an exception in one line."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__


def sample_fault(sample) -> str | None:
    """Finds what is wrong with the boxes that come out of a pipeline.

    An object of which a crop left nothing has an empty mask, and a box without area that is made from it. Mask2Former
    trains on these, which teach it that they are not in the picture.
    """
    packed = sample.get('data_samples') if isinstance(sample, dict) else None
    for data_sample in packed if isinstance(packed, list) else [packed]:
        instances = getattr(data_sample, 'gt_instances', None)
        boxes = getattr(instances, 'bboxes', None)
        boxes = getattr(boxes, 'tensor', boxes)
        if boxes is None or boxes.shape[-1] != 4:
            continue
        if not boxes.isfinite().all():
            wrong, rule = ~boxes.isfinite().all(-1), 'not of finite numbers'
        else:
            wrong, rule = (boxes[:, 2:] <= boxes[:, :2]).any(-1), 'of width or height 0 or less'
            masks = getattr(getattr(instances, 'masks', None), 'masks', None)
            if wrong.any() and isinstance(masks, np.ndarray):
                wrong &= torch.from_numpy(masks.any((1, 2)))
        if wrong.any():
            return f'a box is {boxes[wrong][0].tolist()} (x1, y1, x2, y2) after the pipeline, {rule}'
    return None


def leaves(dataset) -> Iterator:
    """Yields the data sets inside wrappers such as RepeatDataset or ConcatDataset."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        yield dataset
    for part in inner:
        if part is not None:
            yield from leaves(part)


def build_dataset(config, skip_bad_objects: int | None = None):
    """Builds the data set of a config; where its annotations are at fault, the error names the file and the fault.

    A data set that is built already is left as it is, as in mmengine. Objects that mmdet leaves out are told. More of
    them in a file than `skip_bad_objects` are an error.
    """
    if not isinstance(config, dict):
        return config
    try:
        with _telling_left_out(skip_bad_objects):
            dataset = DATASETS.build(config)
            if hasattr(dataset, 'full_init'):
                dataset.full_init()
        return dataset
    except UserError:
        raise
    except Exception as error:
        fault = _annotation_fault(config)
        if fault is None:
            raise
        raise BadSample(f'{fault} (tools/check_data.py finds all faults)') from error


@contextmanager
def _telling_left_out(allowed: int | None):
    """A context that tells how many objects mmdet leaves out of the training data that is built in it.

    Those are boxes outside their image or without area, and objects of no class. mmdet itself does not say so. Where a
    number is allowed, more of them in a file are an error.
    """
    if allowed is not None and (isinstance(allowed, bool) or not isinstance(allowed, int) or allowed < 0):
        raise UserError(f'skip_bad_objects={allowed!r} is not a whole number of objects, 0 or more')
    mmdet = sys.modules.get('mmdet.datasets')
    if mmdet is None:
        yield
        return
    there, kept, parse = Counter(), Counter(), mmdet.CocoDataset.parse_data_info

    def counted(dataset, raw):
        info = parse(dataset, raw)
        if not dataset.test_mode:
            there[dataset.ann_file] += sum(not record.get('ignore') for record in raw['raw_ann_info'])
            kept[dataset.ann_file] += len(info['instances'])
        return info

    with mock.patch.object(mmdet.CocoDataset, 'parse_data_info', counted):
        yield
    for file, count in there.items():
        if kept[file] < count:
            left_out = f'{count - kept[file]} of its {count} objects are left out by mmdet'
            why = 'outside their image, without area or of no class: tools/check_data.py names them'
            line = f'{shown(file)}: {left_out}, {why}'
            if allowed is not None and count - kept[file] > allowed:
                raise UserError(f'{line} (skip_bad_objects={allowed} allows no more)')
            print_log(line, 'current', WARNING)


def _annotation_fault(config):
    """Finds what explains, in the files that list the samples of a data set, why it cannot be built."""
    for leaf in leaf_datasets(config):
        try:
            faults, samples = survey(leaf)
        except Exception:  # the config is at fault; the error that it led to is told
            return None
        try:
            left = len(DATASETS.build({**leaf, 'pipeline': [], 'serialize_data': False}))
        except Exception:
            return next((fault for fault in faults if fault.kind not in UNNOTICED), None)
        if not left:  # which mmengine cannot store
            file = os.path.join(leaf.get('data_root') or '', leaf.get('ann_file') or '')
            what = f'none of its {len(samples)} samples is left (filter_cfg={leaf.get("filter_cfg")})'
            return Fault(file, 'no samples', what)
    return None


def _read(dataset, place):
    """Reads a sample; data sets without a pipeline raise BadSample too."""
    try:
        return dataset[place]
    except PROGRAM_ERRORS:
        raise
    except DATA_ERRORS as error:
        raise BadSample(f'sample {place} of {type(dataset).__name__}: {summary(error)}') from error


def _read_or_next(dataset, skipped, place, key):
    """Reads a sample, or in the place of a bad one the next good one, with the same random numbers."""
    for following in range(len(dataset)):
        try:
            with seeded(*key):
                return _read(dataset, (place + following) % len(dataset))
        except BadSample as bad:
            skipped.add((place + following) % len(dataset), bad)
    raise BadSample(f'none of the {len(dataset)} samples of {type(dataset).__name__} is good')


def _fetch(dataset, skipped, draws):
    return [_read_or_next(dataset, skipped, place, key) for place, key in draws]


def _fetch_named(dataset, places):
    return [_read(dataset, place) for place in places]


def _watch(dataset):
    for leaf in leaves(dataset):
        if isinstance(getattr(leaf, 'pipeline', None), Compose):
            leaf.pipeline = Watched(leaf.pipeline.transforms, getattr(leaf, 'ann_file', ''))


def fetch_by_draw(dataset, allowed: int = 0) -> None:
    """Makes a data set of any class take the (index, key) pairs of `Draws`, through torch's __getitems__.

    So many different bad samples are skipped. Without any, the first one ends the run.
    """
    _watch(dataset)
    dataset.__getitems__ = partial(_fetch, dataset, Skipped(allowed))


def fetch_named(dataset) -> None:
    """Makes a data set name the file of a bad sample. None is skipped, since that would change a metric."""
    _watch(dataset)
    dataset.__getitems__ = partial(_fetch_named, dataset)
