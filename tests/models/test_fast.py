# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What is faster than plain PyTorch, and what the reference does, agree."""

import pytest
import torch

from dat_mm import DAT
from dat_mm.models import WindowAttention, blocks, layers
from dat_mm.models.layers import Linear

if not layers._ONEDNN:
    pytest.skip('this PyTorch has no oneDNN', allow_module_level=True)


@pytest.fixture(params=[False, True], ids=['plain', 'gelu'])
def linear(request):
    torch.manual_seed(0)
    return Linear(16, 24, gelu=request.param)


def both(module, function):
    module.backend = 'auto'
    fast = function()
    module.backend = 'reference'
    return zip(fast, function(), strict=True)


def test_linear_is_one_kernel(linear):
    x = torch.randn(2, 5, 3, 16)
    with torch.no_grad(), torch.profiler.profile() as profile:
        linear(x)
    assert 'mkldnn::_linear_pointwise' in {event.key for event in profile.key_averages()}
    linear.backend = 'reference'
    with torch.no_grad(), torch.profiler.profile() as profile:
        linear(x)
    assert 'mkldnn::_linear_pointwise' not in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize('bias', [True, False])
def test_linear_and_its_gradients(linear, bias):
    if not bias:
        linear.bias = None
    x = torch.randn(2, 7, 5, 16).transpose(1, 2).requires_grad_()  # not contiguous
    parameters = [x, *linear.parameters()]

    def outputs():
        y = linear(x)
        first = torch.autograd.grad(y.square().sum(), parameters, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
        plain = torch.autograd.grad(linear(x).square().sum(), parameters)
        with torch.no_grad():
            return y, *first, *second, *plain, linear(x)

    for fast, expected in both(linear, outputs):
        torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('grad', [True, False])
def test_linear_under_autocast_and_in_other_types(linear, grad):
    def outputs():
        with torch.set_grad_enabled(grad):
            with torch.autocast('cpu', torch.bfloat16):
                y = linear(torch.ones(3, 16))
            return y, *(linear.to(dtype)(torch.ones(3, 16, dtype=dtype)) for dtype in (torch.float64, torch.bfloat16))

    for fast, expected in both(linear, outputs):
        linear.float()
        assert fast.dtype == expected.dtype
        torch.testing.assert_close(fast, expected, rtol=2e-2, atol=2e-2)


def test_linear_under_functional_transforms(linear):
    parameters = dict(linear.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(linear, parameters, (x,)).square().sum()

    x = torch.randn(4, 16)

    def outputs():
        return torch.func.grad(loss)(parameters, x).values()

    for fast, expected in both(linear, outputs):
        torch.testing.assert_close(fast, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize('size', [(7, 7), (14, 21), (10, 9)])
def test_windows_in_inference(size, shifted):
    torch.manual_seed(0)
    attention = WindowAttention(16, 2, shifted=shifted).requires_grad_(False)
    attention.relative_position_bias_table.normal_()
    x = torch.randn(3, *size, 16)

    def outputs():
        with torch.no_grad():
            fast = attention(x)
        return fast, attention.double()(x.double()), attention.float()(x)

    for fast, expected in both(attention, outputs):
        torch.testing.assert_close(fast, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('arch', ['dat-nano', 'datpp-nano'])
def test_images_by_parts(arch, monkeypatch):
    torch.manual_seed(0)
    model, x = DAT(arch, img_size=64).eval(), torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        together = model(x)
        sizes = []
        monkeypatch.setattr(blocks, 'IN_CACHE', 2 * 4 * 16 * 16 * 32 * 4)  # two images of stage 1, four times as wide
        monkeypatch.setattr(model.stages[0].blocks[0], 'forward', lambda x: sizes.append(len(x)) or x)
        model(x)
        monkeypatch.undo()
        monkeypatch.setattr(blocks, 'IN_CACHE', 1)
        for one, expected in zip(model(x), together, strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    assert sizes == [2, 2, 1]
