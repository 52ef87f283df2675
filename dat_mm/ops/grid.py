# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Where queries, keys and table cells are: the one place that knows the coordinate conventions.

Positions are in [-1, 1], with (y, x) in the last axis. In a map that is sampled, -1 and 1 are the centres of the
outermost pixels. The released weights of the two generations were trained with different grids, and each needs its own:

- 'dat' has queries and keys at the centres of n cells that tile [-1, 1]. A range factor counts in 1/n.
- 'datpp' has queries from edge to edge, and keys half a step further. A range factor counts in 1/(n-1).
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, sym_max, sym_min

CONVENTIONS = ('dat', 'datpp')


def check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f'convention={convention!r} is not one of {", ".join(CONVENTIONS)}')


def coordinate_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute coordinates in: float64 if a tensor has it, else float32.

    Half precision misses a table cell by a quarter.
    """
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def full_precision(x: Tensor):
    """A context without autocast, so that coordinates are computed in float32."""
    return nullcontext() if x.device.type == 'meta' else torch.autocast(x.device.type, enabled=False)


def _axis(n, convention, keys, dtype, device):
    i = torch.arange(n, dtype=dtype, device=device)
    if convention == 'dat':
        return (2 * i + 1 - n) / n
    # Released weights divide by n-1: keep. A map of one pixel has its query and its key at 0.
    if keys:
        return (2 * i + 2 - n) * sym_min(n - 1, 1) / sym_max(n - 1, 1)
    return (2 * i + 1 - n) / sym_max(n - 1, 1)


def query_axis(n: int, convention: str) -> tuple[float, float]:
    """The position of the first query along an axis of n, and the distance from one to the next."""
    cells = n if convention == 'dat' else max(n - 1, 1)
    return (1 - n) / cells, 2 / cells


def table_steps(size, table_size, convention: str) -> list[float]:
    """The distance from one query of a map to the next, along y and x, in cells of a table (2T_h-1, 2T_w-1)."""
    return [(n - 1) / 4 * query_axis(queries, convention)[1] for n, queries in zip(table_size, size, strict=True)]


def table_origins(size, table_size, convention: str) -> list[tuple[float, float]]:
    """Where the first query of a map is in a table (2T_h-1, 2T_w-1), along y and along x.

    Each is (the cell for a point at 0, the cells it moves as the point moves by 1). The table is sampled at half the
    displacement of the query from the point, in the coordinates of grid_sample.
    """
    cells = [(n - 1) / 4 for n in table_size]
    return [((query_axis(n, convention)[0] + 2) * c, -c) for n, c in zip(size, cells, strict=True)]


def table_coordinates(points: Tensor, size, table_size, convention: str) -> Tensor:
    """Where the first query of a map is in a table, in cells, for points (..., 2)."""
    origins, slopes = (points.new_tensor(x) for x in zip(*table_origins(size, table_size, convention), strict=True))
    return origins + slopes * points


def query_positions(n: int, convention: str, dtype=torch.float32, device=None) -> Tensor:
    """The positions of the queries along an axis, (n,)."""
    return _axis(n, convention, False, dtype, device)


def _grid(height, width, convention, keys, dtype, device):
    y = _axis(height, convention, keys, dtype, device)
    x = _axis(width, convention, keys, dtype, device)
    return torch.stack(torch.meshgrid(y, x, indexing='ij'), dim=-1)


def query_grid(height: int, width: int, convention: str, dtype=torch.float32, device=None) -> Tensor:
    """Positions of the queries, (H, W, 2)."""
    return _grid(height, width, convention, False, dtype, device)


def key_grid(height: int, width: int, convention: str, dtype=torch.float32, device=None) -> Tensor:
    """Positions of the keys before they are moved, (Hk, Wk, 2). Those of 'datpp' may lie outside [-1, 1]."""
    return _grid(height, width, convention, True, dtype, device)


def move(offsets: Tensor, convention: str, range_factor: float) -> Tensor:
    """The points of the keys, moved by the output of the offset network. Both are (B, G, Hk, Wk, 2)."""
    height, width = offsets.shape[2:4]
    grid = key_grid(height, width, convention, offsets.dtype, offsets.device)
    if range_factor >= 0:
        y, x = (height, width) if convention == 'dat' else (sym_max(height - 1, 1), sym_max(width - 1, 1))
        offsets = offsets.tanh() * range_factor
        return grid + torch.stack((offsets[..., 0] / y, offsets[..., 1] / x), dim=-1)
    if convention == 'dat':
        return (grid + offsets).tanh()
    return (grid + offsets).clamp(-1, 1)


def sample(x: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples (N, C, h, w) of x (N, C, H, W) at points (N, h, w, 2), computed in float32 at least.

    Outside, x counts as zero.
    """
    dtype = coordinate_dtype(x, points)
    return F.grid_sample(x.to(dtype), points.to(dtype).flip(-1), mode='bilinear', align_corners=True).to(x.dtype)
