# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Fetching samples: with the random numbers of their place in the run, and with one line about those that are bad."""

import logging
import multiprocessing

import cv2
from mmengine.logging import print_log

from ..datasets.faults import fault_of_sample, sizes_differ
from ..errors import UserError
from .seeds import seeded

# What bad data leads to in the transforms. Other errors are of a program or a config, and keep their traceback.
OF_DATA = (OSError, ValueError, AssertionError, RuntimeError, ArithmeticError, LookupError, SyntaxError, cv2.error)


class BadSample(UserError):
    """A sample that cannot be used; its line is all that is left when torch hands it on from a worker."""

    def __init__(self, message: str):
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].strip().splitlines()[0])


class CheckSizes:
    """A transform that refuses a segmentation map of another size than its image."""

    def __call__(self, results):
        fault = sizes_differ(results)
        if fault:
            raise ValueError(fault)
        return results


def file_of(dataset, index: int) -> str:
    """The image of a sample, as far as its data set tells."""
    try:
        info = dataset.get_data_info(index)
        return str(info.get('img_path') or f'sample {index}')
    except Exception:  # whatever is wrong with the sample may be wrong here too
        return f'sample {index}'


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[-1].strip() if lines else ''
    return f'{type(error).__name__} {text}'.strip() if isinstance(error, LookupError) or not text else text


class Fetching:
    """Gets the samples of a data set, and leaves out up to `limit` different bad ones.

    In place of a bad sample comes the next good one, with the random numbers of the bad one, so that a resumed run sees
    the same. All workers of a process count together. Without `draws` nothing is left out and no generator seeded: that
    is for validation and test, whose metrics would change.
    """

    def __init__(self, dataset, limit: int = 0, draws: bool = True):
        self.dataset, self.limit, self.draws = dataset, limit, draws
        self.bad = multiprocessing.Array('b', len(dataset)) if limit else None

    def __call__(self, places):
        if not self.draws:
            return [self._get(index) for index in places]
        return [self._good(index, key) for index, key in places]

    def _get(self, index, seed=None):
        try:
            if seed is None:
                return self.dataset[index]
            with seeded(*seed):
                return self.dataset[index]
        except OF_DATA as error:
            raise BadSample(f'{file_of(self.dataset, index)}: {_told(error)}') from error

    def _good(self, index, key):
        for step in range(len(self.dataset)):
            place = (index + step) % len(self.dataset)
            try:
                item = self._get(place, key)
                fault = fault_of_sample(item)
                if fault is None:
                    return item
                bad = BadSample(f'{file_of(self.dataset, place)}: {fault}')
            except BadSample as error:
                bad = error
            self._leave_out(place, bad)
        raise BadSample('no sample of the training data can be used')

    def _leave_out(self, place: int, bad: BadSample) -> None:
        if not self.limit:
            raise bad
        with self.bad.get_lock():
            known, self.bad[place] = self.bad[place], 1
            count = sum(self.bad)
        if count > self.limit:
            raise BadSample(f'{bad}: {count} bad samples, and skip_bad_samples is {self.limit}')
        if not known:
            print_log(f'bad sample {count} of at most {self.limit}: {bad}', 'current', logging.WARNING)


def fetch_by_draw(dataset, limit: int = 0) -> None:
    """Makes a data set of any class take the (index, key) pairs of `Draws`, through torch's __getitems__."""
    _check_sizes_after_loading(dataset)
    dataset.__getitems__ = Fetching(dataset, limit)


def name_bad_samples(dataset) -> None:
    """Makes a data set that is validated or tested on name a sample that cannot be used."""
    dataset.__getitems__ = Fetching(dataset, draws=False)


def _check_sizes_after_loading(dataset) -> None:
    """Puts a check behind the transforms that load, in a data set or those inside of it."""
    for inner in [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())]:
        if inner is not None:
            _check_sizes_after_loading(inner)
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', None)
    if not isinstance(transforms, list):
        return
    names = [type(transform).__name__ for transform in transforms]
    if names[:2] == ['LoadImageFromFile', 'LoadAnnotations'] and 'CheckSizes' not in names:
        transforms.insert(2, CheckSizes())
