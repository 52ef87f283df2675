# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""How a test pipeline makes the input of a model from a picture, as steps that live.js repeats.

A step is a dict whose `kind` says what the others mean: `exact` (width, height), `fit` (long, short: the largest size
of the same shape inside of both sides), `into` (width, height: the same in a frame that does not turn), `edge` (edge,
size: the other side follows), `crop` (width, height: the middle) and `fill` (width, height: black on the right and
below). Sizes are in pixels.
"""

from collections.abc import Iterable

IMAGENET = [dict(kind='edge', edge='short', size=256), dict(kind='crop', width=224, height=224)]
QUIET = ('Load', 'Pack', 'Format', 'To')  # beginnings of the names of steps that leave pixels where they are


def _sides(size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _step(step: dict) -> dict | None:
    """A step of a pipeline as live.js has it, or None if there is none for it."""
    kind = step['type'].rpartition('.')[2]
    if kind == 'Resize' and step.get('scale') is not None:
        width, height = _sides(step['scale'])
        if step.get('keep_ratio'):
            return dict(kind='fit', long=max(width, height), short=min(width, height))
        return dict(kind='exact', width=width, height=height)
    if kind == 'ResizeEdge':
        return dict(kind='edge', edge=step.get('edge', 'short'), size=step['scale'])
    if kind == 'CenterCrop':
        width, height = _sides(step['crop_size'])
        return dict(kind='crop', width=width, height=height)
    return None


def resizing_of(pipeline: Iterable[dict] | None, shape=None) -> tuple[list[dict], list[str]]:
    """The steps for a pipeline, and the names of its steps that a page cannot repeat.

    Without a pipeline they are those of ImageNet. Where a model takes images of one shape (height, width) and the
    pipeline makes others, a picture is made as large as it fits in, and filled up.
    """
    steps, unknown = [], []
    for step in pipeline or ():
        if made := _step(step):
            steps.append(made)
        elif not step['type'].rpartition('.')[2].startswith(QUIET):
            unknown.append(step['type'])
    if pipeline is None:
        steps = IMAGENET
    if shape is not None and not (steps and (steps[-1].get('height'), steps[-1].get('width')) == tuple(shape)):
        height, width = shape
        steps = [dict(kind='into', width=width, height=height), dict(kind='fill', width=width, height=height)]
    return steps, unknown
