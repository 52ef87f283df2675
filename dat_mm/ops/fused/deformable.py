# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Deformable attention by the kernels of packing_kernels.py and deformable_kernels.py: launches, workspaces, gradients.

The backward goes through the map a band of rows at a time. For a band, one kernel adds to the gradients of k, v and
points, and writes the gradients of the logits to a workspace. From that a product makes the gradient of q, and another
kernel that of the table. Each number is added up by one program in one order, so runs repeat to the bit.

B batch, G groups, M heads, D head width, H x W the map, Q = H W queries, K keys.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import grid, library, proof
from ..layout import round_up
from ..tracing import exporting, needs_gradient
from . import FARTHEST, interprets, power_of_2, precision, rows, why_not_heads

WORKSPACE = 72 << 20  # gradients of logits in the workspace, at most, unless a row of the map has more
ROWS = 16  # of the map, which table_gradient takes at a time
PROGRAMS = 512  # of a backward, at least, where there is work for them: enough for a large GPU
LARGEST = 60000.0  # absolute value of a cell in a float16 table
MOST_CELLS = 300  # of a table along an axis, since places in it are int32 with 22 bits after the point
LOG2_E = math.log2(math.e)


class Blocks(NamedTuple):
    """Sizes of the blocks of a program, and how it is launched."""

    queries: int
    keys: int
    warps: int
    stages: int


# Blocks of the forward and of the backward, by the greatest width of a head and the bytes of a number.
BLOCKS = {
    (32, 2): (Blocks(64, 32, 4, 1), Blocks(16, 64, 4, 1)),
    (64, 2): (Blocks(64, 32, 4, 1), Blocks(16, 64, 4, 1)),
    (128, 2): (Blocks(64, 32, 4, 1), Blocks(16, 64, 4, 1)),
    (32, 4): (Blocks(64, 32, 4, 1), Blocks(16, 64, 4, 1)),
    (64, 4): (Blocks(64, 32, 4, 1), Blocks(16, 32, 4, 1)),
    (128, 4): (Blocks(32, 32, 4, 1), Blocks(16, 16, 4, 1)),
}


def blocks_of(q: Tensor) -> tuple[Blocks, Blocks]:
    """The blocks of the forward and of the backward."""
    if interprets():  # few keys, so that small tests have several blocks
        return Blocks(64, 16, 4, 1), Blocks(64, 16, 4, 1)
    return next(blocks for (width, size), blocks in BLOCKS.items() if q.shape[-1] <= width and q.itemsize == size)


class Call:
    """The arguments of a call as the kernels take them, forward and backward alike."""

    def __init__(self, q, k, v, points, table, convention: str):
        self.B, self.M, self.H, self.W, self.D = q.shape
        self.K, self.G = k.shape[2], points.shape[1]
        self.q, self.k, self.v = rows(q.flatten(2, 3)), rows(k), rows(v)
        self.points = points.float().contiguous()
        self.half = q.dtype != torch.float32
        self.cells = (0, 0) if table is None else tuple(table.shape[1:])
        # Without a table these are placeholders, which the kernels do not read.
        self.slopes, self.unit = (0.0, 0.0), False
        self.table = self.places = self.distances = self.points
        if table is not None:
            size = (self.H, self.W), self.cells, convention
            self.origins, self.slopes = zip(*grid.table_origins(*size), strict=True)
            self.steps = tuple(grid.table_steps(*size))
            self.unit = all(abs(step - 1) < 1e-9 for step in self.steps)
            self.table, self.places = pack(table, self.half), self.place_keys()
            place = place_queries if may_keep(q.device) else place_queries.__wrapped__
            self.distances = place(self.H, self.W, self.steps, self.unit, q.device)
        self.options = dict(
            D=self.D,
            BLOCK_D=power_of_2(self.D),
            TABLE=table is not None,
            HALF=self.half,
            UNIT=self.unit,
            PRECISION=precision(),
        )

    @property
    def queries(self):
        return self.H * self.W

    def place_keys(self) -> Tensor:
        """Where the first query stands in the table of each key: a pair of int32 in one int64."""
        from . import packing_kernels as kernels

        keys = self.points.numel() // 2
        places = torch.empty(keys, dtype=torch.int64, device=self.points.device)
        kernels.place_keys[(-(-keys // 256),)](
            *(self.points, places.view(torch.int32), keys, *self.cells, *self.origins, *self.slopes), BLOCK=256
        )
        return places

    def blocks(self, blocks: Blocks) -> dict:
        """The compile-time options of a launch with these blocks."""
        return self.options | dict(
            BLOCK_Q=blocks.queries, BLOCK_K=blocks.keys, num_warps=blocks.warps, num_stages=blocks.stages
        )


def may_keep(device: torch.device) -> bool:
    """Whether a tensor that is made now may be kept for later calls.

    Not on a stream of the caller's own: there a CUDA graph may be captured or warmed up, which reuses memory, and what
    is written there is not ready for other streams.
    """
    return device.type != 'cuda' or torch.cuda.current_stream(device) == torch.cuda.default_stream(device)


@lru_cache(maxsize=32)
def place_queries(height: int, width: int, steps: tuple, unit: bool, device: torch.device) -> Tensor:
    """How far each query stands from the first one: a pair of int32 in one int64."""
    from . import packing_kernels as kernels

    queries = height * width
    distances = torch.empty(queries, dtype=torch.int64, device=device)
    kernels.place_queries[(-(-queries // 256),)](
        *(distances.view(torch.int32), queries, width, *steps), UNIT=unit, BLOCK=256
    )
    return distances


def size_of_packed(table: Tensor) -> tuple[int, int, int]:
    """The heads, rows and columns of the words of a packed table, the ring around it included."""
    return table.shape[0], table.shape[1] + 3, table.shape[2] + 2


def pack(table: Tensor, half: bool) -> Tensor:
    """Packs each cell of a table with its neighbours into one word: int64 (M, 2T_h+2, 2T_w+1), in a ring of zeros.

    A word has a cell and the next one in float32, or these and the two below in float16. Cells are multiplied by
    log2(e), because the kernels take powers of 2.
    """
    from . import packing_kernels as kernels

    cells = table.shape[1:]
    packed = torch.empty(size_of_packed(table), dtype=torch.int64, device=table.device)
    kernels.pack[(-(-packed.numel() // 256),)](
        *(table.contiguous(), packed.view(torch.float16 if half else torch.float32), packed.numel(), *cells),
        CORNERS=4 if half else 2,
        LARGEST=LARGEST,
        BLOCK=256,
    )
    return packed


def forward(q, k, v, points, table, convention: str, scale: float) -> tuple[Tensor, Tensor]:
    """Computes the output (B, M, H, W, D), and the log2 of the sum of each query's powers of 2 (B, M, H, W)."""
    from . import deformable_kernels as kernels

    call = Call(q, k, v, points, table, convention)
    out, log_sum = _fake_forward(q, k, v, points, table, convention, scale)
    blocks, _ = blocks_of(q)
    flat = out.flatten(2, 3)
    kernels.forward[(call.B * call.M * -(-call.queries // blocks.queries),)](
        *(call.q, call.k, call.v, call.places, call.distances, call.table, flat, log_sum),
        *(n for x in (call.q, call.k, call.v, flat) for n in x.stride()[:3]),
        *(call.M, call.M // call.G, call.queries, call.K, *call.cells, scale * LOG2_E),
        **call.blocks(blocks),
    )
    return out, log_sum


def backward(grad, q, k, v, points, table, out, log_sum, convention: str, scale: float) -> list[Tensor]:
    """Computes the gradients of q, k and v, and with a table those of points and table."""
    from . import deformable_kernels as kernels

    call = Call(q, k, v, points, table, convention)
    B, M, K, D, Q = call.B, call.M, call.K, call.D, call.queries
    grad = rows(grad.to(q.dtype).flatten(2, 3))
    flat = rows(out.flatten(2, 3))
    shared = q.new_empty(B, M, Q, dtype=torch.float32)
    kernels.shared_part[(B * M * -(-Q // 64),)](
        *(grad, flat, shared, *grad.stride()[:3], *flat.stride()[:3], M, Q),
        D=D,
        BLOCK_D=power_of_2(D),
        BLOCK_Q=64,
    )
    _, blocks = blocks_of(q)
    band = rows_of_a_band(B * M * K * call.W, call.H)
    programs = B * M * -(-K // blocks.keys)
    splits = max(1, min(-(-PROGRAMS // max(1, programs)), band * call.W // (4 * blocks.queries)))
    pitch = round_up(band * call.W, blocks.queries)
    workspace = q.new_empty(B * M, K, pitch)
    at_once = splits == 1 and band == call.H  # so nothing is left to be added up
    of_k, of_v = (q.new_empty(splits, B, M, K, D, dtype=q.dtype if at_once else torch.float32) for _ in 'kv')
    of_points = q.new_empty(splits, B, call.G, M // call.G, K, 2, dtype=torch.float32)
    of_q = q.new_empty(B, call.H, call.W, M, D).permute(0, 3, 1, 2, 4)
    keys = call.k.reshape(B * M, K, D)
    of_table = TableGradient(call, workspace) if table is not None else None
    for top in range(0, call.H, band):
        bottom = min(top + band, call.H)
        first, last = top * call.W, bottom * call.W
        kernels.backward[(programs * splits,)](
            *(call.q, call.k, call.v, call.places, call.distances, call.table, grad, log_sum.contiguous(), shared),
            *(workspace, of_k, of_v, of_points),
            *(n for x in (call.q, call.k, call.v, grad) for n in x.stride()[:3]),
            *(pitch, B * M, M, M // call.G, Q, K, *call.cells, first, last, splits, scale * LOG2_E, *call.slopes),
            **call.blocks(blocks),
        )
        part = torch.bmm(workspace[..., : last - first].transpose(1, 2), keys)
        torch.mul(part.view(B, M, bottom - top, call.W, D), scale, out=of_q[:, :, top:bottom])
        if of_table is not None:
            of_table.add(top, bottom)
    grads = [of_q, *(x[0] if at_once else x.sum(0).to(q.dtype) for x in (of_k, of_v))]
    if table is None:
        return grads
    return [*grads, of_points.sum((0, 3)).to(points.dtype), of_table.sum().to(table.dtype)]


def rows_of_a_band(logits: int, height: int) -> int:
    """How many rows of the map the backward takes at a time, with so many logits in a row.

    They are a multiple of the rows that table_gradient takes at a time, or all, unless memory is for fewer.
    """
    fit = WORKSPACE // max(1, logits)
    return height if fit >= height else fit // ROWS * ROWS or max(1, fit)


class TableGradient:
    """The gradient of the table, added up from bands of gradients of the logits in a workspace (B M, K, pitch)."""

    def __init__(self, call: Call, workspace: Tensor):
        self.call, self.workspace = call, workspace
        self.tile = [next(n for n in (16, 32, 64) if n >= cells or n == 64) for cells in call.cells]
        tiles = math.prod(-(-cells // n) for cells, n in zip(call.cells, self.tile, strict=True))
        self.programs = len(workspace) * tiles
        self.splits = max(1, min(-(-2 * PROGRAMS // max(1, self.programs)), call.K // 8))
        self.total = workspace.new_empty(self.splits, len(workspace), *call.cells, dtype=torch.float32)

    def add(self, top: int, bottom: int) -> None:
        """Adds what rows `top` to `bottom` of the map give."""
        from . import deformable_kernels as kernels

        call = self.call
        kernels.table_gradient[(self.programs * self.splits,)](
            *(self.workspace, call.points, self.total, self.workspace.stride(1), len(self.workspace)),
            *(call.M // call.G, call.W, call.K, *call.cells, top, bottom, self.splits),
            *(*call.origins, *call.slopes, *call.steps),
            BLOCK_Y=self.tile[0],
            BLOCK_X=self.tile[1],
            BLOCK_H=ROWS,
            BLOCK_W=16 if call.W <= 16 else 32,
            PRECISION='tf32' if call.half else precision(),
            num_warps=4 if max(self.tile) == 64 else 2,
            num_stages=1,
        )

    def sum(self) -> Tensor:
        """The whole gradient, (M, 2T_h-1, 2T_w-1)."""
        return self.total.unflatten(1, (self.call.B, self.call.M)).sum((0, 1))


def _fake_forward(q, k, v, points, table, convention, scale):
    B, M, H, W, D = q.shape
    out = q.new_empty(B, H, W, M, D).permute(0, 3, 1, 2, 4)
    return out, q.new_empty(B, M, H, W, dtype=torch.float32)


_attention = library.register_deformable('triton_deformable', forward, backward, _fake_forward)


def deformable_attention(q, k, v, points, table, *, bias, convention, scale, dropout):
    return _attention(q, k, v, points, table, convention, scale)


def why_not(q, k, v, table, bias, dropout, **call) -> str | None:
    if table is not None and max(table.shape[1:]) > MOST_CELLS:
        return 'the table is {}x{}, it takes {} cells along an axis at most'.format(*table.shape[1:], MOST_CELLS)
    if table is not None and 4 * math.prod(size_of_packed(table)) >= FARTHEST:
        return f'the table {tuple(table.shape)} is too large: 2^31 numbers or more with its neighbours'
    return library.why_not_table(bias, dropout) or why_not_heads(q, k, v)


def is_faster(q, **call) -> bool:
    """Whether 'auto' takes the kernels: on CUDA, but not in an exported graph, which is to be of plain operators."""
    return q.is_cuda and not exporting()


def is_proved(q, k, v, points, table, convention, **call) -> bool:
    """Whether a trial on this machine says that 'auto' may take the kernels for such a call."""
    (B, M, H, W, D), (K, G) = q.shape, (k.shape[2], points.shape[1])
    cells = (0, 0) if table is None else tuple(table.shape[1:])
    question = proof.question('deformable_attention', 'triton', q, D, (convention, table is not None))
    return proof.holds(question, (B, H, W, M, G, K, *cells), needs_gradient(q, k, v, points, table))


def trial_case(dtype, width: int, how: tuple, size: tuple | None):
    """A call to try the kernels with: points lie outside too, and the map is no multiple of a block."""
    convention, with_table = how
    B, H, W, M, G, K, *cells = size or (2, 9, 13, 4, 2, 37, 13, 13)
    numbers = torch.Generator().manual_seed(0)
    q = torch.randn(B, H, W, M, width, generator=numbers).permute(0, 3, 1, 2, 4).to(dtype)
    k, v = (torch.randn(B, M, K, width, generator=numbers).to(dtype) for _ in 'kv')
    points = torch.rand(B, G, K, 2, generator=numbers) * 3 - 1.5
    table = torch.randn(M, *cells, generator=numbers) if with_table else None
    tensors = dict(q=q, k=k, v=v, points=points, table=table)
    return tensors, dict(bias=None, convention=convention, scale=width**-0.5, dropout=0.0)


def work(size: tuple) -> int:
    """The number of logits of a call."""
    B, H, W, M, _, K, *_ = size
    return B * H * W * M * K
