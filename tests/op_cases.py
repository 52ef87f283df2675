# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Cases for the ops: random tensors of given sizes, and what an op makes of them, gradients included."""

import torch

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
KERNELS = {  # of Triton, by file
    'packing': ('pack', 'place_keys', 'place_queries'),
    'deformable': ('forward', 'shared_part', 'backward', 'table_gradient'),
    'neighborhood': ('forward', 'backward_queries', 'backward_keys'),
    'sampling': ('forward', 'backward_points', 'backward_map'),
}


def dtypes_of(backend: str) -> list[torch.dtype]:
    if backend != 'triton':
        return [torch.float64, torch.float32, torch.bfloat16]
    return [torch.float32, torch.float16, torch.bfloat16]


def deformable_case(dtype, H, W, T, K, B=1, M=4, G=2, D=8, spread=1.5, round=False):
    torch.manual_seed(0)
    points = (torch.rand(B, G, K, 2, dtype=torch.float64) * 2 - 1) * spread
    if round:  # where the slope of the interpolation jumps
        points = (points * 2).round() / 2
    case = {
        'q': torch.randn(B, H, W, M, D).permute(0, 3, 1, 2, 4),
        'k': torch.randn(B, M, K, D),
        'v': torch.randn(B, M, K, D),
        'points': points,
        'table': None if T is None else torch.randn(M, 2 * T[0] - 1, 2 * T[1] - 1),
    }
    return convert(case, dtype, keep=('points', 'table'))


def neighborhood_case(dtype, H, W, kernel_size, B=1, M=2, D=8, table=True):
    torch.manual_seed(0)
    case = {name: torch.randn(B, M, H, W, D) for name in 'qkv'}
    case['table'] = torch.randn(M, 2 * kernel_size - 1, 2 * kernel_size - 1) if table else None
    return convert(case, dtype, keep=('table',))


def sampling_case(dtype, H, W, Hk, Wk, B=2, G=2, C=6, spread=1.5):
    torch.manual_seed(0)
    points = (torch.rand(B, G, Hk, Wk, 2, dtype=torch.float64) * 2 - 1) * spread
    return convert({'x': torch.randn(B, H, W, C), 'points': points}, dtype, keep=('points',))


def device_of(backend: str) -> str:
    return DEVICE if backend == 'triton' else 'cpu'


def at(backend: str, case: dict) -> dict:
    """The case on the device where the backend runs."""
    device = device_of(backend)
    return {name: None if x is None else x.detach().to(device).requires_grad_() for name, x in case.items()}


def convert(case, dtype, keep=()):
    """The case in another dtype. The tensors named in `keep` stay in float32 where it is of half precision."""
    wide = dtype if dtype == torch.float64 else torch.float32
    return {n: None if x is None else x.to(wide if n in keep else dtype).requires_grad_() for n, x in case.items()}


def outputs(op, case, **options):
    """The output of an op with gradients and without, and every gradient.

    The reference has no cuDNN, whose grid_sample takes the other side at kinks and adds in any order.
    """
    with torch.backends.cudnn.flags(enabled=options.get('backend') != 'reference', allow_tf32=False):
        return _outputs(op, case, **options)


def _outputs(op, case, **options):
    out = op(**case, **options)
    with torch.no_grad():
        results = {'out': out, 'inference': op(**case, **options)}
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).to(out.dtype).view_as(out)
    leaves = {n: x for n, x in case.items() if x is not None and not (n == 'points' and case.get('table', x) is None)}
    return results | dict(zip(leaves, torch.autograd.grad(out, leaves.values(), weights), strict=True))
