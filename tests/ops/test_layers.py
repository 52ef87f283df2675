# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Linear layers, feed-forward parts and windows: every backend gives what the reference gives."""

import pytest
import torch

from dat_mm import ops
from dat_mm.ops import backends, onednn, parts, windows

pytestmark = pytest.mark.one_stack

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
needs_onednn = pytest.mark.skipif(not onednn.AVAILABLE, reason='this PyTorch has no oneDNN')


def close(result, expected, dtype):
    assert result.dtype == dtype
    error = (result.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
    assert error < TOLERANCE[dtype]


def linear_case(dtype=torch.float32, bias=True):
    x = torch.randn(2, 7, 5, 16, dtype=dtype).transpose(1, 2)  # not contiguous
    return x, torch.randn(24, 16, dtype=dtype) / 4, torch.randn(24, dtype=dtype) if bias else None


def exact(case):
    return [x if x is None else x.double() for x in case]


@pytest.mark.parametrize('activation', ['none', 'gelu'])
@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('backend', ['auto', *backends.LINEAR])
@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
def test_linear_backends_agree(dtype, backend, bias, activation):
    case = linear_case(dtype, bias)
    with torch.no_grad():
        expected = ops.linear(*exact(case), activation=activation, backend='reference')
        if backend == 'onednn' and dtype not in onednn.DTYPES:
            with pytest.raises(RuntimeError, match="backend 'onednn': "):
                ops.linear(*case, activation=activation, backend=backend)
        else:
            close(ops.linear(*case, activation=activation, backend=backend), expected, dtype)


@needs_onednn
@pytest.mark.parametrize('activation', ['none', 'gelu'])
@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
def test_gradients_of_a_linear_layer(bias, activation):
    """First and second ones; a gradient that is itself differentiated takes another way."""
    case = [x.requires_grad_() for x in linear_case(bias=bias) if x is not None]

    def gradients(backend):
        y = ops.linear(*case, activation=activation, backend=backend)
        first = torch.autograd.grad(y.square().sum(), case, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), case)
        plain = torch.autograd.grad(ops.linear(*case, activation=activation, backend=backend).square().sum(), case)
        return y, *first, *second, *plain

    for fast, expected in zip(gradients('onednn'), gradients('reference'), strict=True):
        torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-4)


@needs_onednn
def test_linear_layers_are_one_kernel():
    case = linear_case()
    for backend, seen in (('auto', True), ('reference', False)):
        with torch.no_grad(), torch.profiler.profile() as profile:
            ops.linear(*case, activation='gelu', backend=backend)
        assert ('mkldnn::_linear_pointwise' in {event.key for event in profile.key_averages()}) == seen


@pytest.mark.parametrize('grad', [True, False], ids=['grad', 'no grad'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_linear_layers_under_autocast(grad, dtype):
    case = linear_case()
    with torch.set_grad_enabled(grad), torch.autocast('cpu', dtype):
        close(ops.linear(*case), ops.linear(*exact(case), backend='reference').double(), dtype)


@needs_onednn
def test_a_processor_without_bfloat16_is_asked_for_none(monkeypatch):
    """oneDNN raises there; autocast in bfloat16 then goes by PyTorch's own product."""
    monkeypatch.setattr(onednn, 'DTYPES', [torch.float32])
    case = linear_case(torch.bfloat16)
    with torch.no_grad():
        close(ops.linear(*case), ops.linear(*exact(case), backend='reference'), torch.bfloat16)
        with pytest.raises(RuntimeError, match=r"backend 'onednn': it has no torch\.bfloat16 on this processor"):
            ops.linear(*case, backend='onednn')


def test_linear_layers_under_functional_transforms():
    x, weight, bias = linear_case()

    def loss(weight, backend):
        return ops.linear(x, weight, bias, activation='gelu', backend=backend).square().sum()

    fast, expected = (torch.func.grad(loss)(weight, backend) for backend in ('auto', 'reference'))
    torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-4)


def feed_forward_case(size=(5, 6, 7), conv=True, dtype=torch.float32):
    x = torch.randn(*size, 8, dtype=dtype)
    weights = torch.randn(32, 8) / 3, torch.randn(32), torch.randn(8, 32) / 6, torch.randn(8)
    between = (torch.randn(32, 1, 3, 3) / 3, torch.randn(32)) if conv else (None, None)
    keys = ('weight1', 'bias1', 'weight2', 'bias2', 'conv_weight', 'conv_bias')
    return {'x': x} | {k: None if y is None else y.to(dtype) for k, y in zip(keys, weights + between, strict=True)}


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('conv', [False, True], ids=['', 'convolution'])
@pytest.mark.parametrize('rows', [1, 2, 4, 6, 13, 1000])
def test_parts_of_a_feed_forward_agree(monkeypatch, rows, conv, dtype):
    """By rows of an image, by one image, by several, and all at once."""
    case = feed_forward_case(conv=conv, dtype=dtype)
    monkeypatch.setattr(parts, 'IN_CACHE', rows * 7 * 32 * case['x'].element_size())
    double = {key: None if x is None else x.double() for key, x in case.items()}
    with torch.no_grad():
        expected = ops.feed_forward(**double, backend='reference')
        for backend in ('auto', *backends.FEED_FORWARD):
            close(ops.feed_forward(**case, backend=backend), expected, dtype)


def test_a_batch_of_none_has_parts_of_none():
    case = feed_forward_case((0, 6, 7))
    with torch.no_grad():
        assert ops.feed_forward(**case, backend='parts').shape == (0, 6, 7, 8)


def test_parts_are_small(monkeypatch):
    monkeypatch.setattr(parts, 'IN_CACHE', 2 * 6 * 7 * 32 * 4)
    sizes = []
    original = parts.layer
    monkeypatch.setattr(parts, 'layer', lambda x, *args: sizes.append(tuple(x.shape)) or original(x, *args))
    with torch.no_grad():
        ops.feed_forward(**feed_forward_case(conv=False))
        ops.feed_forward(**feed_forward_case((1, 40, 7), conv=True))
    assert [shape[0] for shape in sizes[:6:2]] == [2, 2, 1]
    assert [shape[1] for shape in sizes[6::2]] == [13, 14, 14, 5]  # 12 rows, and those that they look at


@pytest.mark.parametrize('conv', [False, True], ids=['', 'convolution'])
def test_gradients_of_a_feed_forward(conv):
    case = {key: x if x is None else x.requires_grad_() for key, x in feed_forward_case(conv=conv).items()}
    leaves = [x for x in case.values() if x is not None]
    with pytest.raises(RuntimeError, match="backend 'parts': it keeps nothing for gradients"):
        ops.feed_forward(**case, backend='parts')
    fast, expected = (
        torch.autograd.grad(ops.feed_forward(**case, backend=backend).square().sum(), leaves)
        for backend in ('auto', 'reference')
    )
    for ours, theirs in zip(fast, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('n', [1, 3, 5])
def test_a_map_and_its_convolution_are_one(n, dtype):
    x, weight, bias = torch.randn(2, 5, 6, 4, dtype=dtype), torch.randn(4, 1, n, n).to(dtype), torch.randn(4).to(dtype)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    expected = ops.add_depthwise(*exact_leaves, backend='reference')
    exact_gradients = torch.autograd.grad(expected.square().sum(), exact_leaves)
    for backend in ['auto', 'reference'] + ['folded'] * (dtype != torch.bfloat16):
        found = ops.add_depthwise(*leaves, backend=backend)
        close(found, expected, dtype)
        for ours, theirs in zip(torch.autograd.grad(found.square().sum(), leaves), exact_gradients, strict=True):
            close(ours, theirs, dtype)


def test_a_kernel_takes_in_the_map_only_where_nothing_of_it_is_lost():
    x, weight = torch.randn(1, 5, 6, 4), torch.randn(4, 1, 3, 3)
    call = dict(x=x, weight=weight, bias=None)
    folded = backends.DEPTHWISE['folded']
    assert folded.takes(**call)
    assert folded.why_not(**call | dict(x=x.to('meta'))) == 'on meta a convolution may round the map, as to TF32'
    with torch.autocast('cpu', torch.bfloat16):
        assert folded.why_not(**call) == 'in torch.bfloat16 little would be left of a weight beside 1'
        expected = ops.add_depthwise(x, weight, backend='reference')
        assert torch.equal(ops.add_depthwise(x, weight), expected)
    with pytest.raises(RuntimeError, match=r"backend 'folded': in torch\.float16 little would be left"):
        ops.add_depthwise(x.half(), weight.half(), backend='folded')


@pytest.mark.parametrize('shift', [0, 4])
@pytest.mark.parametrize('size', [(7, 7), (14, 21), (10, 9), (3, 30)], ids=str)
def test_windows_are_put_together_again(size, shift):
    x = torch.randn(2, *size, 3)
    cut = windows.split(x, 7, shift)
    assert cut.shape[1:4] == (-(-size[0] // 7), -(-size[1] // 7), 49)
    assert torch.equal(windows.join(cut, *size, 7, shift), x)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('shift', [0, 4])
@pytest.mark.parametrize('size', [(7, 7), (14, 21), (10, 9)], ids=str)
def test_window_backends_agree(size, shift, dtype):
    rows, columns = -(-size[0] // 7), -(-size[1] // 7)
    q, k, v = torch.randn(3, 2, rows, columns, 4, 49, 8, dtype=dtype)
    bias = torch.randn(4, 49, 49)
    mask = windows.mask(*size, rows, columns, 7, shift, q.device) if shift else None
    expected = ops.window_attention(*exact((q, k, v, bias, mask)), backend='reference')
    with torch.no_grad():
        for backend in ('auto', *backends.WINDOW):
            close(ops.window_attention(q, k, v, bias, mask, backend=backend), expected, dtype)


def test_masks_part_what_a_roll_brought_together():
    """By regions of an image of 10x9 in windows of 7, padded to 14x14 and rolled by 4."""
    mask = windows.mask(10, 9, 2, 2, 7, 4, None)
    assert mask.shape == (2, 2, 49, 49)
    assert set(mask.unique().tolist()) == {-100.0, 0.0}
    assert not mask[0, 0].any()
    last = mask[1, 1].view(7, 7, 7, 7)
    assert last[0, 0, 2, 2] == 0 and last[0, 0, 3, 0] == -100 and last[6, 6, 3, 3] == 0


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: ops.linear(*linear_case(), activation='relu'), "activation='relu' is not one of none, gelu"),
        (
            lambda: ops.linear(*linear_case(), backend='tiles'),
            "backend='tiles' is unknown here: there are auto",
        ),
        (lambda: ops.feed_forward(torch.zeros(2, 8), *[None] * 4), r'x has shape \(2, 8\), not \(B, H, W, C\)'),
        (
            lambda: ops.add_depthwise(torch.zeros(1, 5, 6, 4), torch.zeros(4, 1, 2, 2)),
            r'weight has shape \(4, 1, 2, 2\), not \(C, 1, n, n\) with C=4 and n odd',
        ),
        (
            lambda: ops.window_attention(*torch.zeros(3, 1, 1, 1, 2, 4, 8), torch.zeros(2, 4, 5)),
            r'bias has shape \(2, 4, 5\), not \(2, 4, 4\)',
        ),
    ],
)
def test_wrong_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
