# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Predictions are drawn in the colours of the data set."""

import pytest

from dat_mm.commands.infer import as_palette
from dat_mm.datasets import PALETTE, SHAPES_METAINFO


def test_each_class_has_its_colour():
    """A checkpoint tells the colours as a tuple of tuples, which mmdet took for one colour and refused to draw."""
    get_palette = pytest.importorskip('mmdet.visualization.palette').get_palette
    for colours in (SHAPES_METAINFO['palette'], tuple(PALETTE)):
        assert get_palette(as_palette(colours), len(PALETTE)) == PALETTE
    assert as_palette(None) == 'random'
    assert as_palette((1, 2, 3)) == (1, 2, 3)
