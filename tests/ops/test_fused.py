# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: what they read and write, that they compile for GPUs, and what they promise on one."""

import importlib

import pytest
import torch
from op_cases import DEVICE, deformable_case, dtypes_of, neighborhood_case, outputs, sampling_case

from dat_mm.ops import deformable_attention, neighborhood_attention, sample_features

MARGIN = 1024  # numbers before and after
POISON = {True: float('nan'), False: -(1 << 30)}
CASES = {
    'deformable': (deformable_attention, deformable_case, {'B': 2, 'H': 7, 'W': 11, 'T': (3, 5), 'K': 19, 'D': 20}),
    'neighborhood': (neighborhood_attention, neighborhood_case, {'B': 2, 'H': 9, 'W': 13, 'kernel_size': 7}),
    'sampling': (sample_features, sampling_case, {'H': 7, 'W': 5, 'Hk': 3, 'Wk': 6, 'C': 10}),
}
KERNELS = {
    'deformable_kernels': ('place_keys', 'place_queries', 'forward', 'backward', 'table_gradient'),
    'neighborhood_kernels': ('forward', 'backward_queries', 'backward_keys'),
    'sampling_kernels': ('forward', 'backward_points', 'backward_map'),
}
each_op = pytest.mark.parametrize(('op', 'make', 'sizes'), CASES.values(), ids=CASES)
each_dtype = pytest.mark.parametrize('dtype', dtypes_of('triton'), ids=lambda x: str(x).removeprefix('torch.'))


class Guarded:
    """A kernel whose tensors lie in poison, which it must neither read nor change."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.launches += 1
            tensors = [x for x in args if torch.is_tensor(x)]
            buffers = [self.buffer(x.data) for x in tensors]
            copies = iter([x for _, x in buffers])
            self.kernel[grid](*(next(copies) if torch.is_tensor(x) else x for x in args), **options)
            for x, (buffer, copy) in zip(tensors, buffers, strict=True):
                x.data.copy_(copy)
                copy.fill_(POISON[x.is_floating_point()])
                clean = buffer.isnan() if x.is_floating_point() else buffer == POISON[False]
                assert clean.all(), 'it wrote beside a tensor'

        return launch

    @staticmethod
    def buffer(x):
        length = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1 if x.numel() else 0
        buffer = x.new_full((length + 2 * MARGIN,), POISON[x.is_floating_point()])
        copy = buffer.as_strided(x.shape, x.stride(), MARGIN)
        return buffer, copy.copy_(x)


@pytest.fixture
def guards(monkeypatch):
    guards = []
    for module, names in KERNELS.items():
        kernels = importlib.import_module(f'dat_mm.ops.fused.{module}')
        for name in names:
            guards.append(Guarded(getattr(kernels, name)))
            monkeypatch.setattr(kernels, name, guards[-1])
    return guards


@each_dtype
@each_op
def test_kernels_keep_to_their_tensors(guards, op, make, sizes, dtype):
    case = {name: x.to(DEVICE) for name, x in make(dtype, **sizes).items()}
    expected = outputs(op, case, backend='reference')
    for name, x in outputs(op, case, backend='triton').items():
        assert (x - expected[name]).abs().max() < 0.02 * expected[name].abs().max(), name
    assert any(guard.launches for guard in guards)
