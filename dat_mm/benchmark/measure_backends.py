# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/measure_backends.py does: the processor time of each backend of the two ops, at the models' shapes."""

import ctypes
import statistics
import time

import torch

from ..ops import backends, deformable_attention, neighborhood_attention

# Of each case: B, M, G, (H, W), K, T, convention; heads are 32 wide.
DEFORMABLE = {
    'dat-tiny stage 3, 224, batch 8': (8, 12, 3, (14, 14), 196, 14, 'dat'),
    'dat-tiny stage 4, 224, batch 8': (8, 24, 6, (7, 7), 49, 7, 'dat'),
    'dat-tiny stage 3, 224': (1, 12, 3, (14, 14), 196, 14, 'dat'),
    'dat-tiny stage 3, 384': (1, 12, 3, (24, 24), 576, 14, 'dat'),
    'dat-base stage 3, trained at 384': (1, 16, 4, (24, 24), 576, 24, 'dat'),
    'dat-tiny stage 3, 512': (1, 12, 3, (32, 32), 1024, 14, 'dat'),
    'dat-tiny stage 4, 512': (1, 24, 6, (16, 16), 256, 7, 'dat'),
    'dat-tiny stage 3, 800x1280': (1, 12, 3, (50, 80), 4000, 14, 'dat'),
    'dat-tiny stage 4, 800x1280': (1, 24, 6, (25, 40), 1000, 7, 'dat'),
    'datpp-tiny stage 1, 224, batch 8': (8, 2, 1, (56, 56), 49, 56, 'datpp'),
    'datpp-tiny stage 2, 224, batch 8': (8, 4, 2, (28, 28), 49, 28, 'datpp'),
    'datpp-tiny stage 3, 224, batch 8': (8, 8, 4, (14, 14), 49, 14, 'datpp'),
    'datpp-tiny stage 4, 224, batch 8': (8, 16, 8, (7, 7), 49, 7, 'datpp'),
    'datpp-tiny stage 1, 224': (1, 2, 1, (56, 56), 49, 56, 'datpp'),
    'datpp-tiny stage 2, 224': (1, 4, 2, (28, 28), 49, 28, 'datpp'),
    'datpp-tiny stage 3, 224': (1, 8, 4, (14, 14), 49, 14, 'datpp'),
    'datpp-tiny stage 1, 384': (1, 2, 1, (96, 96), 144, 56, 'datpp'),
    'datpp-tiny stage 2, 384': (1, 4, 2, (48, 48), 144, 28, 'datpp'),
    'datpp-tiny stage 3, 384': (1, 8, 4, (24, 24), 144, 14, 'datpp'),
    'datpp-tiny stage 1, 512': (1, 2, 1, (128, 128), 256, 56, 'datpp'),
    'datpp-tiny stage 2, 512': (1, 4, 2, (64, 64), 256, 28, 'datpp'),
    'datpp-tiny stage 3, 512': (1, 8, 4, (32, 32), 256, 14, 'datpp'),
    'datpp-tiny stage 4, 512': (1, 16, 8, (16, 16), 256, 7, 'datpp'),
    'datpp-tiny stage 1, 800x1280': (1, 2, 1, (200, 320), 1000, 56, 'datpp'),
    'datpp-tiny stage 4, 800x1280': (1, 16, 8, (25, 40), 1000, 7, 'datpp'),
}
# Of each case: B, M, (H, W); heads are 32 wide.
NEIGHBORHOOD = {
    'one neighborhood': (1, 2, (7, 7)),
    'datpp-tiny stage 1, 224, batch 8': (8, 2, (56, 56)),
    'datpp-tiny stage 2, 224, batch 8': (8, 4, (28, 28)),
    'datpp-tiny stage 3, 224, batch 8': (8, 8, (14, 14)),
    'datpp-tiny stage 1, 800x1280': (1, 2, (200, 320)),
    'datpp-tiny stage 3, 800x1280': (1, 8, (50, 80)),
}


def deformable_case(B, M, G, size, K, T, convention, dtype):
    """Makes (op, inputs, options) of deformable attention, of random numbers."""
    q = torch.randn(B, *size, M, 32, dtype=dtype).permute(0, 3, 1, 2, 4)
    k, v = (torch.randn(B, M, K, 32, dtype=dtype) for _ in range(2))
    points, table = torch.rand(B, G, K, 2) * 2 - 1, torch.randn(M, 2 * T - 1, 2 * T - 1)
    return deformable_attention, (q, k, v, points, table), {'convention': convention}


def neighborhood_case(B, M, size, dtype):
    """Makes (op, inputs, options) of neighborhood attention, of random numbers."""
    q, k, v = torch.randn(B, *size, 3, M, 32, dtype=dtype).permute(3, 0, 4, 1, 2, 5)
    return neighborhood_attention, (q, k, v, torch.randn(M, 13, 13)), {}


def call(op, inputs, options, backend, training):
    """Runs the op once, in training with all its gradients."""
    if not training:
        with torch.no_grad():
            return op(*inputs, **options, backend=backend)
    out = op(*inputs, **options, backend=backend)
    return torch.autograd.grad(out, inputs, out.detach())


def measure(table, case, training, repeats):
    """Times a case with each backend; returns their median seconds, and the name of the one that 'auto' takes."""
    op, inputs, options = case
    inputs = [x.detach().requires_grad_(training) for x in inputs]
    seconds = {name: [] for name in table}
    for _ in range(repeats + 1):  # the first warms up
        for name in table:
            start = time.process_time()
            call(op, inputs, options, name, training)
            seconds[name].append(time.process_time() - start)
    chosen = []
    entries = {name: b._replace(run=lambda name=name: chosen.append(name)) for name, b in table.items()}
    names = ('q', 'k', 'v', 'points', 'table') if len(inputs) == 5 else ('q', 'k', 'v', 'table')
    arguments = dict(zip(names, inputs, strict=True)) | {'bias': None, 'dropout': 0.0, 'scale': 1.0} | options
    with torch.set_grad_enabled(training):
        backends.choose(entries, 'auto', arguments | {'kernel_size': 7})()
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}, chosen[0]


def keep_memory():
    """Keeps freed memory in the process, as between the layers of a network; else page faults would be timed."""
    if mallopt := getattr(ctypes.CDLL(None), 'mallopt', None):  # glibc
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


def measure_backends(*, only='', repeats=3, dtype='float32') -> None:
    """Prints a table for each op: a row a shape, a column a backend, on one thread.

    `only` keeps the shapes whose names contain it. Each figure is the median of `repeats` runs; backends take turns.
    """
    keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print('Milliseconds; the choice of `auto` is bold, and has a mark where something else is faster by a tenth.\n')
    for title, table, shapes, make in (
        ('deformable', backends.DEFORMABLE, DEFORMABLE, deformable_case),
        ('neighborhood', backends.NEIGHBORHOOD, NEIGHBORHOOD, neighborhood_case),
    ):
        table = {name: backend for name, backend in table.items() if name != 'triton'}  # it needs a GPU
        print(f'| {title} | | {" | ".join(table)} | |\n|{"---|" * (len(table) + 3)}', flush=True)
        for name, shape in shapes.items():
            if only not in name:
                continue
            for training in (False, True):
                case = make(*shape, getattr(torch, dtype))
                seconds, chosen = measure(table, case, training, repeats)
                cells = [f'**{s * 1e3:.3g}**' if n == chosen else f'{s * 1e3:.3g}' for n, s in seconds.items()]
                mark = '!' if seconds[chosen] > 1.1 * min(seconds.values()) else ''
                print(
                    f'| {name} | {"training" if training else "inference"} | {" | ".join(cells)} | {mark} |', flush=True
                )
