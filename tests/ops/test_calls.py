# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The Triton kernels take tensors as callers have them: with any strides, on any device, and more than once."""

import importlib
from contextlib import contextmanager

import pytest
import torch
from op_cases import DEVICE, KERNELS, deformable_case, neighborhood_case, sampling_case

from dat_mm.ops import deformable_attention, fused, library, neighborhood_attention, sample_features

pytestmark = pytest.mark.one_stack

CASES = {
    'deformable': (deformable_attention, deformable_case, {'B': 2, 'H': 3, 'W': 4, 'T': (3, 5), 'K': 5, 'M': 2}),
    'neighborhood': (neighborhood_attention, neighborhood_case, {'B': 2, 'H': 4, 'W': 5, 'kernel_size': 3, 'M': 2}),
    'sampling': (sample_features, sampling_case, {'B': 2, 'H': 4, 'W': 5, 'Hk': 2, 'Wk': 3}),
}
each_op = pytest.mark.parametrize(('op', 'make', 'sizes'), CASES.values(), ids=CASES)


def case_of(make, sizes, dtype=torch.float32):
    return {name: x.detach().to(DEVICE) for name, x in make(dtype, **sizes).items()}


def options_of(op):
    return {'kernel_size': 3} if op is neighborhood_attention else {}


def with_gaps(x):
    """Two numbers from each to the next."""
    return torch.stack([x, x.new_full(x.shape, float('nan'))], -1)[..., 0]


def within_wider_rows(x):
    """The last axis is contiguous, begins in the middle of a row, and the axes before it are in reverse order."""
    order = [*range(x.ndim - 2, -1, -1), x.ndim - 1]
    wide = torch.nn.functional.pad(x.permute(order), (1, 4), value=float('nan'))
    return wide[..., 1:-4].permute(order)


def reversed_axes(x):
    """The last axis has the longest step."""
    order = [*range(x.ndim - 1, -1, -1)]
    return x.permute(order).contiguous().permute(order)


LAYOUTS = (with_gaps, within_wider_rows, reversed_axes)


def gradients(op, case, backward):
    """All gradients of the op, as `backward` has it called, and the output."""
    leaves = {name: x.detach().requires_grad_() for name, x in case.items()}
    out = op(**leaves, backend='triton', **options_of(op))
    return {'out': out} | dict(zip(leaves, backward(out, list(leaves.values())), strict=True))


def weighted(layout):
    """A backward whose gradient of the output has such a layout."""

    def backward(out, leaves):
        grad = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view(out.shape)
        return torch.autograd.grad(out, leaves, layout(grad))

    return backward


def same(found, expected):
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, msg=lambda told, name=name: f'{name}: {told}')


@each_op
@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda x: x.__name__)
def test_strides_make_no_difference(op, make, sizes, layout):
    """Those of the inputs, of the points and of the gradient that a backward is given."""
    case = case_of(make, sizes)
    found = gradients(op, {name: layout(x) for name, x in case.items()}, weighted(layout))
    same(found, gradients(op, case, weighted(torch.clone)))


@each_op
@pytest.mark.parametrize('axes', [(0,), (-1,), (2, 3), (0, 1, 2, 3)], ids=str)
def test_gradients_may_be_expanded(op, make, sizes, axes):
    """The gradient of a mean is one number, with strides of 0 along the axes that it was taken over."""
    case = case_of(make, sizes)

    def backward(out, leaves):
        grad = torch.linspace(1, 2, out.numel(), device=out.device).view(out.shape).mean(axes, keepdim=True)
        return torch.autograd.grad(out, leaves, grad.expand(out.shape))

    def plain(out, leaves):
        grad = torch.linspace(1, 2, out.numel(), device=out.device).view(out.shape).mean(axes, keepdim=True)
        return torch.autograd.grad(out, leaves, grad.expand(out.shape).contiguous())

    same(gradients(op, case, backward), gradients(op, case, plain))


@each_op
def test_inputs_may_be_expanded(op, make, sizes):
    """All images and heads may be one in memory."""
    case = {n: x if n == 'table' else x[:1].expand(x.shape) for n, x in case_of(make, sizes).items()}
    same(
        gradients(op, case, weighted(torch.clone)),
        gradients(op, {n: x.contiguous() for n, x in case.items()}, weighted(torch.clone)),
    )


@each_op
def test_a_graph_that_is_kept_gives_its_gradients_again(op, make, sizes):
    case = case_of(make, sizes)

    def backward(out, leaves):
        first = torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
        kept = [x.clone() for x in first]
        second = torch.autograd.grad(out, leaves, torch.ones_like(out))
        assert all(torch.equal(*pair) for pair in zip(kept, second, strict=True))
        assert all(torch.equal(*pair) for pair in zip(kept, first, strict=True))
        return second

    gradients(op, case, backward)


@each_op
@pytest.mark.parametrize(
    ('layout', 'dtype'),
    [
        (torch.clone, torch.bfloat16),
        (with_gaps, torch.float32),
        (within_wider_rows, torch.bfloat16),
        (reversed_axes, torch.float32),
    ],
    ids=lambda x: getattr(x, '__name__', str(x).removeprefix('torch.')),
)
def test_operators_are_what_their_fakes_say(op, make, sizes, layout, dtype):
    """Shapes, dtypes and strides agree with the fake implementation, and no input is changed in place."""
    case = {name: layout(x) for name, x in case_of(make, sizes, dtype).items()}
    how = {deformable_attention: ('datpp', 0.3), neighborhood_attention: (3, 0.3), sample_features: ()}[op]
    name = {deformable_attention: 'deformable', neighborhood_attention: 'neighborhood', sample_features: 'sample'}[op]
    forward, backward = (getattr(torch.ops.dat_mm, f'triton_{name}{end}') for end in ('', '_backward'))
    for inputs in (case, case | {'table': None}) if 'table' in case else (case,):
        out = forward(*inputs.values(), *how)
        results = out if isinstance(out, tuple) else ()
        grad = layout(torch.ones_like(results[0] if results else out))
        for operator, args in (
            (forward, (*inputs.values(), *how)),
            (backward, (grad, *inputs.values(), *results, *how)),
        ):
            torch.library.opcheck(operator, args, test_utils=('test_schema', 'test_faketensor'))


class Watched:
    """Wraps a kernel and notes which device was chosen when it was launched."""

    def __init__(self, kernel, note):
        self.kernel, self.note = kernel, note

    def __getitem__(self, grid):
        self.note()
        return self.kernel[grid]


@each_op
def test_kernels_run_on_the_device_of_their_tensors(op, make, sizes, monkeypatch):
    """Triton launches on the device that is current, which may be another one than that of the tensors.

    A stand-in for the guard of PyTorch notes whose device is chosen, since there may be one device only.
    """
    chosen, launched = [], []

    @contextmanager
    def device_of(x):
        chosen.append(x)
        with guard(x):
            yield
        chosen.pop()

    guard = torch.cuda.device_of
    monkeypatch.setattr(library.torch.cuda, 'device_of', device_of)
    for file, names in KERNELS.items():
        kernels = importlib.import_module(f'dat_mm.ops.fused.{file}_kernels')
        for name in names:
            note = lambda at=f'{file} {name}': launched.append((at, [x.shape for x in chosen]))  # noqa: E731
            monkeypatch.setattr(kernels, name, Watched(getattr(kernels, name), note))
    fused.deformable.place_queries.cache_clear()
    case = case_of(make, sizes)
    results = gradients(op, case, weighted(torch.clone))
    first = next(iter(case.values()))
    files = {deformable_attention: ('packing', 'deformable'), neighborhood_attention: ('neighborhood',)}
    expected = {f'{file} {name}' for file in files.get(op, ('sampling',)) for name in KERNELS[file]}
    assert {at for at, _ in launched} == expected
    # forward has an input first, backward the gradient of the output
    assert all(x in ([first.shape], [results['out'].shape]) for _, x in launched)


def test_a_kept_tensor_is_asked_for_by_the_stream_of_its_own_device(monkeypatch):
    """Another device may be current, with a stream of the caller's own."""
    streams = {'cuda:0': 'own', 'cuda:1': 'default'}
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: streams[str(device)])
    monkeypatch.setattr(torch.cuda, 'default_stream', lambda device: 'default')
    assert not fused.deformable.may_keep(torch.device('cuda:0'))
    assert fused.deformable.may_keep(torch.device('cuda:1'))


@each_op
def test_autocast_does_not_reach_the_kernels(op, make, sizes):
    """Points, tables and sums stay in float32: what runs under autocast is the same to the bit, gradients included."""
    case = case_of(make, sizes, torch.bfloat16)
    expected = gradients(op, case, weighted(torch.clone))
    with torch.autocast(DEVICE, torch.bfloat16):
        found = gradients(op, case, weighted(torch.clone))
    assert all(torch.equal(found[name], x) and found[name].dtype == x.dtype for name, x in expected.items())
