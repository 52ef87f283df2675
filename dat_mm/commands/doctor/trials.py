# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Every backend of every op at shapes of the published models, against the reference in float64 on the CPU."""

import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from ...benchmark import measure_backends
from ...ops import add_depthwise, backends, feed_forward, linear, proof, sample_features, window_attention

DTYPES = {'cpu': ('float32', 'bfloat16'), 'cuda': ('float32', 'bfloat16', 'float16')}
IMAGES = {'cpu': 1, 'cuda': 8}  # of the small sizes; of the large ones it is one
WIDTH = 32  # of a head, in all published models


class Case(NamedTuple):
    """A call: its op, the tensors by name, the other arguments, and the arguments that backends get beside them."""

    op: Callable
    table: dict
    tensors: dict
    options: dict
    inner: dict


def _deformable(B, M, G, size, K, T, convention, dtype):
    op, inputs, options = measure_backends.deformable_case(B, M, G, size, K, T, convention, dtype)
    tensors = dict(zip(('q', 'k', 'v', 'points', 'table'), inputs, strict=True))
    return Case(op, backends.DEFORMABLE, tensors, options, dict(bias=None, scale=WIDTH**-0.5, dropout=0.0, **options))


def _neighborhood(B, M, size, dtype):
    op, inputs, options = measure_backends.neighborhood_case(B, M, size, dtype)
    tensors = dict(zip(('q', 'k', 'v', 'table'), inputs, strict=True))
    return Case(op, backends.NEIGHBORHOOD, tensors, options, dict(kernel_size=7, scale=WIDTH**-0.5, dropout=0.0))


def _sampling(B, size, C, G, dtype):
    tensors = dict(x=torch.randn(B, *size, C, dtype=dtype), points=torch.rand(B, G, *size, 2) * 2 - 1)
    return Case(sample_features, backends.SAMPLING, tensors, {}, {})


def _window(B, M, rows, columns, dtype):
    q, k, v = (torch.randn(B, rows, columns, M, 49, WIDTH, dtype=dtype) for _ in 'qkv')
    tensors = dict(q=q, k=k, v=v, bias=torch.randn(M, 49, 49))
    return Case(window_attention, backends.WINDOW, tensors, {}, dict(mask=None, dropout=0.0))


def _weights(*shape, dtype, inputs: int):
    return (torch.randn(*shape) / inputs**0.5).to(dtype)


def _linear(B, size, C, dtype):
    tensors = dict(
        x=torch.randn(B, *size, C, dtype=dtype),
        weight=_weights(4 * C, C, dtype=dtype, inputs=C),
        bias=torch.randn(4 * C, dtype=dtype),
    )
    options = dict(activation='gelu')
    return Case(linear, backends.LINEAR, tensors, options, options)


def _add_depthwise(B, size, C, dtype):
    tensors = dict(
        x=torch.randn(B, *size, C, dtype=dtype),
        weight=_weights(C, 1, 3, 3, dtype=dtype, inputs=9),
        bias=torch.randn(C, dtype=dtype),
    )
    return Case(add_depthwise, backends.DEPTHWISE, tensors, {}, {})


def _feed_forward(B, size, C, dtype):
    tensors = dict(
        x=torch.randn(B, *size, C, dtype=dtype),
        weight1=_weights(4 * C, C, dtype=dtype, inputs=C),
        bias1=torch.randn(4 * C, dtype=dtype),
        weight2=_weights(C, 4 * C, dtype=dtype, inputs=4 * C),
        bias2=torch.randn(C, dtype=dtype),
        conv_weight=_weights(4 * C, 1, 3, 3, dtype=dtype, inputs=9),
        conv_bias=torch.randn(4 * C, dtype=dtype),
    )
    return Case(feed_forward, backends.FEED_FORWARD, tensors, {}, {})


# (what it is, function that makes it, layer, arguments at 224, arguments at 800x1280); all after the number of images
SHAPES = (
    ('deformable attention', _deformable, 'dat-tiny stage 3',
     (12, 3, (14, 14), 196, 14, 'dat'), (12, 3, (50, 80), 4000, 14, 'dat')),
    ('deformable attention', _deformable, 'datpp-tiny stage 2',
     (4, 2, (28, 28), 49, 28, 'datpp'), (4, 2, (100, 160), 1000, 28, 'datpp')),
    ('neighborhood attention', _neighborhood, 'datpp-tiny stage 2', (4, (28, 28)), (4, (100, 160))),
    ('sampling of features', _sampling, 'dat-tiny stage 3', ((14, 14), 384, 3), ((50, 80), 384, 3)),
    ('window attention', _window, 'dat-tiny stage 2', (6, 4, 4), (6, 15, 23)),
    ('linear layer and GELU', _linear, 'dat-tiny stage 3', ((14, 14), 384), ((50, 80), 384)),
    ('map and its convolution', _add_depthwise, 'datpp-tiny stage 2', ((28, 28), 128), ((100, 160), 128)),
    ('feed-forward', _feed_forward, 'datpp-tiny stage 2', ((28, 28), 128), ((100, 160), 128)),
)  # fmt: skip


class Planned(NamedTuple):
    """A case before its tensors are made."""

    name: str
    make: Callable
    arguments: tuple
    dtype: str


def plan(device: str) -> list[Planned]:
    """What is tried on a device: on a CPU the small sizes alone."""
    kind = torch.device(device).type
    images, planned = IMAGES[kind], []
    for op, make, layer, small, large in SHAPES:
        sizes = [(f'{layer}, 224' + f', batch {images}' * (images > 1), (images, *small))]
        if kind == 'cuda':
            sizes.append((f'{layer}, 800x1280', (1, *large)))
        planned += [
            Planned(f'{op}, {size}', make, arguments, dtype) for size, arguments in sizes for dtype in DTYPES[kind]
        ]
    return planned


def _choice(case: Case, tensors: dict) -> str:
    """The backend that 'auto' takes for a call."""
    named = {name: entry._replace(run=lambda name=name: name) for name, entry in case.table.items()}
    arguments = {'conv_weight': None, 'conv_bias': None} if case.op is feed_forward else {}
    return backends.choose(named, 'auto', {**arguments, **tensors, **case.inner})()


def _median(run, device: str, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first warms up
        if device.startswith('cuda'):
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.startswith('cuda'):
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _difference(found: dict, expected: dict) -> tuple[float, str]:
    """The largest difference of the output and the gradients as a share of the largest value, and where it is."""
    worst = 0.0, 'the output'
    for name, right in expected.items():
        share = proof.difference(found[name], right)
        if math.isnan(share):
            return share, name
        worst = max(worst, (share, name))
    return worst


def try_one(planned: Planned, device: str, repeats: int) -> list[dict]:
    """Says what each backend did with a case, forward and backward."""
    torch.manual_seed(0)
    case = planned.make(*planned.arguments, getattr(torch, planned.dtype))
    exact = proof.at(case.tensors, True, 'cpu', torch.float64)
    expected = proof.results(case.op, exact, case.options | dict(backend='reference'))
    tensors = proof.at(case.tensors, True, device)
    choice = _choice(case, tensors)
    told = []
    for backend in case.table:
        row = dict(case=planned.name, dtype=planned.dtype, backend=backend, auto=backend == choice)
        told.append(row | _with(backend, case, tensors, expected, planned.dtype, device, repeats))
    return told


def _with(backend, case: Case, tensors, expected, dtype: str, device: str, repeats: int) -> dict:
    options = case.options | dict(backend=backend)
    try:
        found, again = (proof.results(case.op, tensors, options) for _ in range(2))
    except Exception as error:
        why = str(error).strip().splitlines()[0][:160]
        refused = why.startswith(f'backend {backend!r}: ')
        return dict(state='cannot' if refused else 'wrong', why=why.removeprefix(f'backend {backend!r}: '))
    difference, where = _difference(found, expected)
    right = difference <= proof.TOLERANCE[dtype]
    return dict(
        state='ok' if right else 'wrong',
        why='' if right else f'{where} differs by {difference:.2g} of the largest value',
        difference=difference,
        repeats=all(torch.equal(found[key], again[key]) for key in found),
        milliseconds=1e3 * _median(lambda: proof.results(case.op, tensors, options), device, repeats),
    )
