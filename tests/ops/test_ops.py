# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The reference follows the definitions of the ops, has exact gradients, and names wrong arguments."""

import subprocess
import sys

import pytest
import torch

from dat_mm.ops import deformable_attention, grid, neighborhood_attention, sample_features

pytestmark = pytest.mark.one_stack


def deformable_case(B=1, M=2, G=2, H=3, W=2, K=3, D=2, T=(3, 2), dtype=torch.float64, spread=1.5):
    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    points = (spread * torch.rand(B, G, K, 2, dtype=dtype) * 2 - spread).requires_grad_()
    table = normal(M, 2 * T[0] - 1, 2 * T[1] - 1)
    return normal(B, M, H, W, D), normal(B, M, K, D), normal(B, M, K, D), points, table


@pytest.mark.parametrize('convention', grid.CONVENTIONS)
@pytest.mark.parametrize('sizes', [{'B': 2}, {'H': 1, 'W': 4}, {'G': 1, 'K': 1}, {'T': (1, 3), 'M': 4}], ids=str)
def test_gradients_of_deformable_attention(convention, sizes):
    case = deformable_case(**sizes)
    assert torch.autograd.gradcheck(
        lambda *a: deformable_attention(*a, convention=convention, backend='reference'), case
    )


@pytest.mark.parametrize('sizes', [(7, 7), (7, 9), (8, 7)], ids=str)
def test_gradients_of_neighborhood_attention(sizes):
    q, k, v = (torch.randn(1, 1, *sizes, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    table = torch.randn(1, 13, 13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: neighborhood_attention(*a, backend='reference'), (q, k, v, table))


def test_gradients_of_sampling():
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(2, 2, 2, 3, 2, dtype=torch.float64) * 3 - 1.5).requires_grad_()
    assert torch.autograd.gradcheck(sample_features, (x, points))


def test_deformable_attention_by_loops():
    """The op agrees with its definition, computed one query and one key at a time."""
    B, M, G, H, W, K, D, (T_h, T_w) = 1, 2, 1, 2, 3, 4, 3, (3, 2)
    q, k, v, points, table = (t.detach() for t in deformable_case(B, M, G, H, W, K, D, (T_h, T_w)))
    out = deformable_attention(q, k, v, points, table, convention='datpp')

    def cell(m, y, x):
        inside = 0 <= y < 2 * T_h - 1 and 0 <= x < 2 * T_w - 1
        return float(table[m, y, x]) if inside else 0.0

    for m in range(M):
        for i in range(H):
            for j in range(W):
                logits = []
                for n in range(K):
                    y = ((i / (H - 1) * 2 - 1 - float(points[0, 0, n, 0])) / 2 + 1) * (T_h - 1)
                    x = ((j / (W - 1) * 2 - 1 - float(points[0, 0, n, 1])) / 2 + 1) * (T_w - 1)
                    y0, x0 = int(y // 1), int(x // 1)
                    fy, fx = y - y0, x - x0
                    bias = (1 - fy) * ((1 - fx) * cell(m, y0, x0) + fx * cell(m, y0, x0 + 1))
                    bias += fy * ((1 - fx) * cell(m, y0 + 1, x0) + fx * cell(m, y0 + 1, x0 + 1))
                    logits.append(q[0, m, i, j] @ k[0, m, n] / D**0.5 + bias)
                expected = torch.stack(logits).softmax(0) @ v[0, m]
                torch.testing.assert_close(out[0, m, i, j], expected)


def test_neighborhood_attention_by_loops():
    M, H, W, D = 2, 8, 9, 3
    q, k, v = (torch.randn(1, M, H, W, D, dtype=torch.float64) for _ in range(3))
    table = torch.randn(M, 13, 13, dtype=torch.float64)
    out = neighborhood_attention(q, k, v, table)
    for y in range(H):
        for x in range(W):
            top, left = min(max(y - 3, 0), H - 7), min(max(x - 3, 0), W - 7)
            keys, values = (t[0, :, top : top + 7, left : left + 7].flatten(1, 2) for t in (k, v))  # (M, 49, D)
            bias = table[:, top - y + 6 : top - y + 13, left - x + 6 : left - x + 13].flatten(1)
            weights = ((keys @ q[0, :, y, x, :, None])[..., 0] / D**0.5 + bias).softmax(-1)
            torch.testing.assert_close(out[0, :, y, x], (weights[:, None] @ values)[:, 0])


@pytest.mark.parametrize('convention', grid.CONVENTIONS)
@pytest.mark.parametrize('size', [(1, 1), (1, 5), (4, 1)], ids=str)
def test_one_pixel_axes_stand_at_zero(convention, size):
    for make in (grid.query_grid, grid.key_grid):
        points = make(*size, convention)
        for axis, n in enumerate(size):
            if n == 1:
                assert (points[..., axis] == 0).all()
    for factor in (2, 0, -1):
        moved = grid.move(torch.randn(1, 1, *size, 2), convention, factor)
        assert moved.isfinite().all()


def test_published_grids():
    """Keys of datpp leave [-1, 1] and its queries end on the border; those of dat are the centres of cells."""
    torch.testing.assert_close(grid.key_grid(4, 4, 'datpp')[:, 0, 0], torch.tensor([-2 / 3, 0, 2 / 3, 4 / 3]))
    torch.testing.assert_close(grid.query_grid(4, 4, 'datpp')[:, 0, 0], torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    centres = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    torch.testing.assert_close(grid.key_grid(4, 4, 'dat')[0, :, 1], centres)
    torch.testing.assert_close(grid.query_grid(4, 4, 'dat')[0, :, 1], centres)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_close(dtype):
    case = [t.detach().float() for t in deformable_case(D=16)]
    expected = deformable_attention(*case)
    q, k, v, points, table = case
    out = deformable_attention(q.to(dtype), k.to(dtype), v.to(dtype), points, table.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=3e-2, rtol=3e-2)


def broken(**changes):
    names = ('q', 'k', 'v', 'points', 'table')
    case = dict(zip(names, deformable_case(B=2, M=4, H=3, W=5, K=6, D=4), strict=True))
    for name, shape in changes.items():
        case[name] = torch.zeros(shape)
    return case


@pytest.mark.parametrize(
    ('changes', 'options', 'message'),
    [
        ({'q': (2, 4, 15, 4)}, {}, r'q has shape \(2, 4, 15, 4\), not \(B, M, H, W, D\)'),
        ({'k': (2, 4, 6, 5)}, {}, r'k has shape \(2, 4, 6, 5\)'),
        ({'v': (2, 4, 7, 4)}, {}, r'v has shape \(2, 4, 7, 4\)'),
        ({'points': (2, 2, 5, 2)}, {}, r'points have shape \(2, 2, 5, 2\).*K=6'),
        ({'points': (2, 3, 6, 2)}, {}, 'heads=4 is not a multiple of groups=3'),
        ({'table': (3, 7, 5)}, {}, r'table has shape \(3, 7, 5\).*M=4'),
        ({}, {'convention': 'dat3'}, "convention='dat3' is not one of dat, datpp"),
        ({}, {'backend': 'fastest'}, "backend='fastest' is unknown"),
    ],
)
def test_wrong_arguments_are_named(changes, options, message):
    with pytest.raises(ValueError, match=message):
        deformable_attention(**broken(**changes), **options)


@pytest.mark.parametrize(
    ('shapes', 'options', 'message'),
    [
        ([(1, 2, 6, 8, 4)] * 3, {}, 'a map of 6x8 is smaller than kernel_size=7'),
        ([(1, 2, 8, 8, 4)] * 3, {'kernel_size': 4}, 'kernel_size=4 is even'),
        ([(1, 2, 8, 8, 4), (1, 2, 8, 9, 4), (1, 2, 8, 8, 4)], {}, r'k has shape \(1, 2, 8, 9, 4\)'),
        ([(1, 2, 8, 8, 4)] * 3 + [(2, 7, 7)], {}, r'table has shape \(2, 7, 7\), not \(2, 13, 13\)'),
    ],
)
def test_wrong_neighborhoods_are_named(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(*(torch.zeros(shape) for shape in shapes), **options)


def test_ops_and_attention_need_no_mmengine():
    code = """
import sys
sys.modules['mmengine'] = None
import torch, dat_mm.ops
from dat_mm import DAT, DeformableAttention
print(DeformableAttention(16, 2, map_size=7)(torch.randn(1, 7, 7, 16)).shape, len(DAT('dat-nano').arch.stages))
try:
    import dat_mm.registry
except ImportError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert 'torch.Size([1, 7, 7, 16]) 4' in out
    assert 'dat-mm[openmmlab]' in out and 'dat-mm[onedl]' in out
