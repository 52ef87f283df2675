# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from dat_mm import DAT
from dat_mm.commands import get_flops
from dat_mm.complexity import Classifier, count_parts, table

pytestmark = pytest.mark.one_stack

# Multiply-adds in G at 224, with the head for ImageNet and both products of attention.
MACS = {
    'dat-tiny': 4.563,
    'dat-small': 8.959,
    'dat-base': 15.721,
    'datp-tiny': 4.025,
    'datpp-tiny': 4.259,
    'datpp-small': 9.382,
    'datpp-base': 16.502,
}


@pytest.mark.parametrize('arch', MACS)
def test_multiply_adds(arch):
    parts = get_flops.count_arch(arch, (224, 224))
    assert sum(part.macs for part in parts) / 1e9 == pytest.approx(MACS[arch], rel=2e-3)


def test_multiply_adds_at_384():
    parts = get_flops.count_arch('dat-base', (384, 384), img_size=384, window_size=12)
    assert sum(part.macs for part in parts) / 1e9 == pytest.approx(49.450, rel=2e-3)


def test_offset_networks_by_hand():
    """Stage 3 of dat-tiny, at 14x14, has three networks, each for 3 groups of 128 channels: 5x5, then to 2 channels."""
    stage = get_flops.count_arch('dat-tiny', (224, 224))[3]
    assert stage.name == 'stage 3'
    assert stage.offset_macs == 3 * 3 * 14 * 14 * (128 * 25 + 128 * 2)


def test_parts_add_up_and_are_counted_whatever_the_backend():
    with torch.device('meta'):
        model = Classifier(DAT('datpp-nano'))
        parts = count_parts(model, torch.empty(1, 3, 64, 96))
    assert [part.name for part in parts] == ['stem', 'stage 1', 'stage 2', 'stage 3', 'stage 4', 'the rest']
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())
    assert parts[-1].macs == 1000 * 192
    assert parts[0].macs == 32 * 48 * 16 * 27 + 16 * 24 * 32 * 9 * 16
    assert table(parts).count('\n') == 7
