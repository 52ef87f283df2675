# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""No offset in a Triton kernel overflows, and none leaves its tensor, up to the largest call that is accepted."""

import importlib.util
import inspect
import sys

import pytest
import torch

pytest.importorskip('triton')

from addresses import check
from op_cases import KERNELS

from dat_mm.ops import fused
from dat_mm.ops.fused import deformable, neighborhood, sampling

pytestmark = [
    pytest.mark.one_stack,
    pytest.mark.skipif(not fused.interprets(), reason='the kernels are not interpreted'),
]
ACCEPTED = 'its kernels run on a GPU of NVIDIA, not on meta'  # there is no other reason against a call


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device='meta')


def as_it_is(x):
    return x


def deformable_call(B, M, G, H, W, K, T, convention='dat', gradient=as_it_is):
    """A call with the strides of the models. `gradient` makes the gradient of the output from that."""
    q = empty(B, H, W, M, 32).permute(0, 3, 1, 2, 4)
    k, v = (empty(B, K, M, 32).transpose(1, 2) for _ in 'kv')
    points, table = empty(B, G, K, 2, dtype=torch.float32), empty(M, 2 * T - 1, 2 * T - 1, dtype=torch.float32)
    assert deformable.why_not(q, k, v, table=table, bias=None, dropout=0.0) == ACCEPTED

    def call():
        out, log_sum = deformable.forward(q, k, v, points, table, convention, 0.1)
        deformable.backward(gradient(out), q, k, v, points, table, out, log_sum, convention, 0.1)

    return call


def neighborhood_call(B, M, H, W, gradient=as_it_is):
    q, k, v = empty(B, H, W, 3, M, 32).permute(3, 0, 4, 1, 2, 5)
    table = empty(M, 13, 13, dtype=torch.float32)
    assert neighborhood.why_not(q, k, v, kernel_size=7, dropout=0.0) == ACCEPTED

    def call():
        out, log_sum = neighborhood.forward(q, k, v, table, 7, 0.1)
        neighborhood.backward(gradient(out), q, k, v, table, out, log_sum, 7, 0.1)

    return call


def sampling_call(B, G, C, H, W, Hk, Wk):
    x, points = empty(B, H, W, C), empty(B, G, Hk, Wk, 2, dtype=torch.float32)
    assert sampling.why_not(x, points) == ACCEPTED

    def call():
        sampling.backward(sampling.forward(x, points), x, points)

    return call


CALLS = {
    # At 224 with batch 128.
    'deformable dat-base 3': deformable_call(128, 16, 4, 14, 14, 196, 14),
    'deformable dat-base 4': deformable_call(128, 32, 8, 7, 7, 49, 7),
    'deformable datpp-base 1': deformable_call(128, 4, 2, 56, 56, 49, 56, 'datpp'),
    'deformable datpp-small 3': deformable_call(128, 12, 3, 14, 14, 49, 14, 'datpp'),
    'neighborhood datpp-base 1': neighborhood_call(128, 4, 56, 56),
    'neighborhood datpp-base 3': neighborhood_call(128, 16, 14, 14),
    'sampling datpp-base 1': sampling_call(128, 2, 128, 56, 56, 7, 7),
    'sampling dat-tiny 3': sampling_call(128, 3, 384, 14, 14, 14, 14),
    # Of images of 2048x2048 and 4096x4096.
    'deformable dat-tiny 3, 2048': deformable_call(8, 12, 3, 128, 128, 128 * 128, 14),
    'deformable datpp-tiny 1, 4096': deformable_call(8, 2, 1, 1024, 1024, 128 * 128, 56, 'datpp'),
    'neighborhood datpp-base 1, 4096': neighborhood_call(16, 4, 1024, 1024),
    'sampling datpp-base 1, 4096': sampling_call(64, 2, 128, 1024, 1024, 128, 128),
    # The largest that are accepted.
    'deformable, largest map': deformable_call(8, 6, 3, 3344, 3344, 20, 150),
    'deformable, most keys': deformable_call(40, 1, 1, 30, 30, 20 << 20, 150),
    'deformable, most logits': deformable_call(2, 1, 1, 3, 4096, 1 << 20, 14),
    'deformable, largest table': deformable_call(1, 5900, 1, 3, 5, 2, 150),
    'neighborhood, largest map': neighborhood_call(32, 2, 3344, 3344),
    'sampling, largest map': sampling_call(64, 1, 127, 4096, 4096, 3, 5),
    'sampling, most keys': sampling_call(64, 1, 127, 3, 5, 4096, 4096),
}
SLOW = {'deformable dat-base 3', 'deformable, largest map', 'deformable, most logits', 'deformable datpp-tiny 1, 4096'}


@pytest.mark.parametrize('call', [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in CALLS])
def test_offsets_do_not_overflow(call):
    op = call.split()[0].rstrip(',')
    files = ('packing', op) if op == 'deformable' else (op,)
    assert check(CALLS[call]) == {f'{file} {name}' for file in files for name in KERNELS[file]}


NARROW = 'image * ', 'image.to(tl.int32) * '
KEYS, LOGITS, MAP = 'deformable, most keys', 'deformable, most logits', 'neighborhood, largest map'
SMALL = 'deformable dat-base 4'
# (kernel, (what it says, what it must not say), a call that shows it)
FAULTS = [
    ('packing pack', ('mask=at < n)', 'mask=at <= n)'), 'deformable dat-base 3'),
    ('packing place_keys', ('there = at < n', 'there = at <= n'), 'deformable, largest map'),
    ('packing place_queries', ('mask=at < n)', 'mask=at <= n)'), SMALL),
    ('deformable forward', NARROW, KEYS),
    ('deformable forward', ('mask=n < queries)', 'mask=n <= queries)'), SMALL),
    ('deformable shared_part', NARROW, 'deformable, largest map'),
    ('deformable shared_part', ('mask=n < queries)', 'mask=n <= queries)'), SMALL),
    ('deformable backward', NARROW, KEYS),
    ('deformable backward', ('there = at < keys', 'there = at <= keys'), SMALL),
    ('deformable table_gradient', ('(pair * keys + key)', '(pair.to(tl.int32) * keys + key)'), LOGITS),
    ('deformable table_gradient', ('(cell_y < cells_y)', '(cell_y <= cells_y)'), SMALL),
    ('neighborhood forward', NARROW, MAP),
    ('neighborhood forward', ('(y < height)', '(y <= height)'), 'neighborhood datpp-base 3'),
    ('neighborhood backward_queries', NARROW, MAP),
    ('neighborhood backward_queries', ('(y < height)', '(y <= height)'), 'neighborhood datpp-base 3'),
    ('neighborhood backward_keys', NARROW, MAP),
    ('neighborhood backward_keys', ('(key_y < height)', '(key_y <= height)'), 'neighborhood datpp-base 3'),
    ('sampling forward', NARROW, 'sampling, largest map'),
    ('sampling forward', ('there = at < keys', 'there = at <= keys'), 'sampling dat-tiny 3'),
    ('sampling backward_points', NARROW, 'sampling, largest map'),
    ('sampling backward_points', ('there = at < keys', 'there = at <= keys'), 'sampling dat-tiny 3'),
    ('sampling backward_map', NARROW, 'sampling, largest map'),
    ('sampling backward_map', ('(n < height * width)', '(n <= height * width)'), 'sampling dat-tiny 3'),
]


def with_fault(path, kernel, fault):
    """A module of kernels with a fault in one of them."""
    file, name = kernel.split()
    module = importlib.import_module(f'dat_mm.ops.fused.{file}_kernels')
    right = inspect.getsource(getattr(module, name).fn)
    assert fault[0] in right
    source = inspect.getsource(module)
    assert source.count(right) == 1
    path.write_text(source.replace(right, right.replace(*fault)))
    spec = importlib.util.spec_from_file_location(module.__name__, path)
    wrong = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wrong)
    return wrong


@pytest.mark.parametrize(('kernel', 'fault', 'call'), FAULTS, ids=lambda x: x[1] if isinstance(x, tuple) else x)
def test_an_offset_that_is_wrong_would_be_seen(kernel, fault, call, monkeypatch, tmp_path):
    """An offset to an image that has 32 bits, and a mask that lets one number too many through, in each kernel."""
    wrong = with_fault(tmp_path / 'kernels.py', kernel, fault)
    monkeypatch.setitem(sys.modules, wrong.__name__, wrong)
    monkeypatch.setattr(fused, wrong.__name__.split('.')[-1], wrong)
    with pytest.raises(AssertionError, match=rf'{kernel}(: an offset into \w+ overflows| leaves \w+,)'):
        check(CALLS[call], only=kernel)


def test_each_kernel_has_a_fault():
    assert {kernel for kernel, *_ in FAULTS} == {f'{file} {name}' for file in KERNELS for name in KERNELS[file]}


def images_last(x):
    """As large as x, with the numbers of an image as far apart in memory as all images together are long."""
    B, M, H, W, D = x.shape
    return empty(H, W, B, M, D).permute(2, 3, 0, 1, 4)


@pytest.mark.parametrize(
    'call',
    [
        deformable_call(80, 1, 1, 1024, 1024, 20, 150, gradient=images_last),
        neighborhood_call(80, 1, 1024, 1024, gradient=images_last),
    ],
    ids=['deformable', 'neighborhood'],
)
def test_gradients_may_have_any_strides(call):
    """Those of q, k and v are known when a call is accepted, but the strides of the gradient are not."""
    check(call)


@pytest.mark.parametrize('heads', [deformable, neighborhood], ids=lambda x: x.__name__.split('.')[-1])
@pytest.mark.parametrize(
    ('q', 'k', 'reason'),
    [
        ((1, 16, 2048, 2048, 32), (1, 16, 9, 9, 32), '2^31 numbers or more an image'),
        ((1 << 18, 2, 49, 49, 1), (1 << 18, 2, 1, 1, 1), '2^30 rows or more'),
        ((1 << 18, 2, 7, 7, 1), (1 << 18, 2, 49, 49, 1), '2^30 rows or more'),
    ],
)
def test_heads_beyond_32_bits_are_refused(heads, q, k, reason):
    k = k if heads is neighborhood else (k[0], k[1], k[2] * k[3], k[4])
    q, k = empty(*q), empty(*k)
    assert heads.why_not(q, k, k, table=None, bias=None, kernel_size=7, dropout=0.0).endswith(reason)


def test_a_table_beyond_32_bits_is_refused():
    q, k = empty(1, 5950, 3, 5, 32), empty(1, 5950, 2, 32)
    reason = deformable.why_not(q, k, k, table=empty(5950, 299, 299), bias=None, dropout=0.0)
    assert reason.endswith('2^31 numbers or more with its neighbours')


@pytest.mark.parametrize(
    ('x', 'points'),
    [
        ((1, 3, 3, 600), (1, 1, 2048, 2048, 2)),  # the samples
        ((1, 3, 3, 1), (1, 1, 1 << 15, 1 << 15, 2)),  # the points
        ((1 << 20, 1, 1, 1 << 11), (1 << 20, 1 << 11, 1, 1, 2)),  # the grid
    ],
)
def test_samples_beyond_32_bits_are_refused(x, points):
    assert sampling.why_not(empty(*x), empty(*points)).endswith('2^31 numbers or more an image')


def test_gradient_of_an_expanded_map_is_refused_beyond_32_bits():
    x = empty(1, 1, 1, 600).expand(1, 2048, 2048, 600)
    assert sampling.why_not(x, empty(1, 1, 2, 2, 2)).endswith('2^31 numbers or more an image')
