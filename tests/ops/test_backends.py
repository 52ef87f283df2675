# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Every backend agrees with the reference, gradients included, and keeps its other promises."""

import pytest
import torch
from op_cases import at, deformable_case, dtypes_of, neighborhood_case, outputs, sampling_case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from dat_mm.ops import backends, deformable_attention, grid, neighborhood_attention, sample_features, separable

pytestmark = pytest.mark.one_stack

# The largest error, relative to the largest number of the exact result, or to 1 where that is more.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def each(named: dict, but: str = 'reference'):
    """Parametrises a test over every backend but these two, in every dtype that it has."""
    cases = [(name, dtype) for name in named if name not in ('reference', but) for dtype in dtypes_of(name)]
    return pytest.mark.parametrize(('backend', 'dtype'), cases, ids=name_of)


def name_of(x) -> str:
    return str(x).removeprefix('torch.')


MAPS = {
    'trained size': {'H': 6, 'W': 6, 'T': (6, 6), 'K': 9},
    'trained size, not square': {'B': 3, 'H': 4, 'W': 7, 'T': (4, 7), 'K': 5},
    'larger, odd': {'H': 9, 'W': 13, 'T': (6, 6), 'K': 12},
    'smaller': {'B': 3, 'H': 3, 'W': 5, 'T': (6, 7), 'K': 6},
    'trained size along x': {'H': 9, 'W': 5, 'T': (4, 5), 'K': 4},
    'one pixel': {'H': 1, 'W': 1, 'T': (3, 2), 'K': 1},
    'one row': {'H': 1, 'W': 8, 'T': (1, 4), 'K': 3},
    'one cell': {'H': 3, 'W': 4, 'T': (1, 1), 'K': 4},
    'groups': {'M': 6, 'G': 3, 'H': 5, 'W': 4, 'T': (5, 5), 'K': 7},
    'stride 8': {'H': 16, 'W': 24, 'T': (16, 16), 'K': 6},
    'several tiles': {'H': 27, 'W': 83, 'T': (7, 14), 'K': 10},
    'many keys': {'B': 2, 'H': 5, 'W': 9, 'T': (20, 40), 'K': 37, 'D': 20},
    'far outside': {'H': 7, 'W': 5, 'T': (7, 7), 'K': 8, 'spread': 6.0},
    'on cells': {'H': 5, 'W': 5, 'T': (5, 5), 'K': 9, 'round': True},
    'no table': {'H': 5, 'W': 6, 'T': None, 'K': 7},
}


def check_agreement(op, case, dtype, backend, **options):
    """Compares outputs and gradients with those of the reference in float64."""
    case = at(backend, case)
    exact = {n: None if x is None else x.detach().double().requires_grad_() for n, x in case.items()}
    expected = outputs(op, exact, backend='reference', **options)
    for name, x in outputs(op, case, backend=backend, **options).items():
        assert name not in case or x.dtype == case[name].dtype
        error = (x.double() - expected[name]).abs().max() / max(expected[name].abs().max(), 1)
        assert error < TOLERANCE[dtype], (name, float(error))


@each(backends.DEFORMABLE, but='triton')
@pytest.mark.parametrize('convention', grid.CONVENTIONS)
@pytest.mark.parametrize('sizes', MAPS.values(), ids=MAPS)
def test_deformable_backends_agree(backend, sizes, convention, dtype):
    check_agreement(deformable_attention, deformable_case(dtype, **sizes), dtype, backend, convention=convention)


# Where they are interpreted, kernels take seconds for what others do in milliseconds. Each map meets both conventions,
# one of them in float32 and the other in half precision. Each convention meets each dtype. Kernels have code of their
# own for calls without a table, and for steps of 1: both meet float32 and half precision.
HALVES = [torch.float16, torch.bfloat16]
TURNS = [
    (name, convention, HALVES[i // 2 % 2] if (i + j) % 2 else torch.float32)
    for i, name in enumerate(MAPS)
    for j, convention in enumerate(grid.CONVENTIONS)
]
# Several blocks of queries, shares of them, and parts of the map that the gradient of the table takes at a time.
SMALLER = {'several tiles': {'H': 18, 'W': 35, 'T': (7, 14), 'K': 10, 'M': 2}}


@pytest.mark.parametrize(('name', 'convention', 'dtype'), TURNS, ids=name_of)
def test_kernels_of_deformable_attention_agree(name, convention, dtype):
    case = deformable_case(dtype, **SMALLER.get(name, MAPS[name]))
    check_agreement(deformable_attention, case, dtype, 'triton', convention=convention)


def test_kernels_meet_both_dtypes_in_each_form_they_are_compiled_in():
    def form(name, convention, dtype):
        sizes = MAPS[name]
        if sizes['T'] is None:
            return dtype.itemsize, 'no table'
        cells = [2 * n - 1 for n in sizes['T']]
        steps = grid.table_steps((sizes['H'], sizes['W']), cells, convention)
        return dtype.itemsize, 'steps of 1' if max(abs(step - 1) for step in steps) < 1e-9 else 'other steps'

    met = {form(*turn) for turn in TURNS}
    assert met == {(size, of) for size in (2, 4) for of in ('no table', 'steps of 1', 'other steps')}
    assert {turn[1:] for turn in TURNS} == {(c, d) for c in grid.CONVENTIONS for d in dtypes_of('triton')}


@each(backends.NEIGHBORHOOD, but='triton')
@pytest.mark.parametrize('table', [True, False], ids=['table', 'no table'])
@pytest.mark.parametrize('kernel_size', [3, 7])
@pytest.mark.parametrize('size', [(7, 7), (8, 15), (9, 30), (24, 17)], ids=str)
def test_neighborhood_backends_agree(backend, size, kernel_size, table, dtype):
    case = neighborhood_case(dtype, *size, kernel_size, B=1 + table, table=table)
    check_agreement(neighborhood_attention, case, dtype, backend, kernel_size=kernel_size)


# Each pair of two values is met, but for dtypes with sizes, which have nothing to do with each other. A tile of keys is
# seen by more columns of queries than a kernel takes at a time where a row of 22 ends, with neighborhoods of 7.
@pytest.mark.parametrize(
    ('size', 'kernel_size', 'table', 'dtype'),
    [
        ((7, 7), 3, True, torch.float32),
        ((7, 7), 7, False, torch.float16),
        ((8, 15), 3, False, torch.bfloat16),
        ((8, 15), 7, True, torch.float32),
        ((9, 22), 3, False, torch.float32),
        ((9, 22), 7, True, torch.bfloat16),
        ((24, 17), 3, True, torch.float16),
        ((24, 17), 7, False, torch.float32),
    ],
    ids=name_of,
)
def test_kernels_of_neighborhood_attention_agree(size, kernel_size, table, dtype):
    case = neighborhood_case(dtype, *size, kernel_size, B=1 + (size == (7, 7)), table=table)
    check_agreement(neighborhood_attention, case, dtype, 'triton', kernel_size=kernel_size)


SAMPLES = {
    'one pixel': {'H': 1, 'W': 1, 'Hk': 2, 'Wk': 1},
    'odd': {'H': 7, 'W': 10, 'Hk': 3, 'Wk': 5},
    'one group': {'H': 5, 'W': 16, 'Hk': 6, 'Wk': 6, 'G': 1, 'C': 70},
    'far outside': {'H': 4, 'W': 4, 'Hk': 4, 'Wk': 4, 'spread': 8.0},
}


@each(backends.SAMPLING)
@pytest.mark.parametrize('sizes', SAMPLES.values(), ids=SAMPLES)
def test_sampling_backends_agree(backend, dtype, sizes):
    check_agreement(sample_features, sampling_case(dtype, **sizes), dtype, backend)


@pytest.mark.parametrize('budget', [1, 20_000])
@pytest.mark.parametrize('threads', [1, 3, 8])
@pytest.mark.parametrize('scale', [0.3, 300.0], ids=['', 'logits of all sizes'])
def test_chunks_agree(monkeypatch, budget, threads, scale):
    """Chunks may cut keys, tiles, images and groups, and the last of each may be smaller than the others.

    Logits of a later chunk may be far larger than those of the first.
    """
    monkeypatch.setitem(separable.BUDGET, 'cpu', budget)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    case = deformable_case(torch.float64, B=3, H=6, W=45, T=(6, 10), K=11)
    check_agreement(deformable_attention, case, torch.float64, 'separable', scale=scale)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


def test_no_tensor_is_as_large_as_the_logits(monkeypatch):
    monkeypatch.setitem(separable.BUDGET, 'cpu', 1 << 16)
    case = [x.detach() for x in deformable_case(torch.float32, B=2, H=24, W=32, T=(8, 8), K=200).values()]
    with Largest() as largest, torch.no_grad():
        out, log_sum = separable.forward(*case, 'datpp', 0.3)
        separable.backward(out, *case, out, log_sum, 'datpp', 0.3)
    logits = case[0].shape[0] * case[0].shape[1] * 24 * 32 * 200
    assert largest.elements < logits / 10


OPS = [
    (deformable_attention, deformable_case, {'H': 9, 'W': 6, 'T': (4, 6), 'K': 12}, backends.DEFORMABLE),
    (neighborhood_attention, neighborhood_case, {'H': 9, 'W': 15, 'kernel_size': 7}, backends.NEIGHBORHOOD),
]
CASES = [(*op, name) for *op, names in OPS for name in names]
each_backend = pytest.mark.parametrize(
    ('op', 'make', 'sizes', 'backend'), CASES, ids=[f'{op.__name__}-{b}' for op, _, _, b in CASES]
)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@each_backend
def test_training_repeats_to_the_bit(deterministic, op, make, sizes, backend):
    first, second = (outputs(op, at(backend, make(torch.float32, **sizes)), backend=backend) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@each_backend
def test_compiles_in_one_graph(op, make, sizes, backend):
    torch._dynamo.reset()
    case = at(backend, make(torch.float32, **sizes))
    compiled = torch.compile(op, fullgraph=True, backend='aot_eager')
    expected = outputs(op, case, backend=backend)
    for name, x in outputs(compiled, case, backend=backend).items():
        torch.testing.assert_close(x, expected[name])


@each_backend
def test_checkpointing_gives_the_same_gradients(op, make, sizes, backend):
    case = at(backend, make(torch.float32, **sizes))
    expected = outputs(op, case, backend=backend)
    results = outputs(lambda **case: checkpoint(op, **case, backend=backend, use_reentrant=False), case)
    assert all(torch.equal(results[name], expected[name]) for name in expected)


@each_backend
def test_autocast_keeps_coordinates(op, make, sizes, backend):
    case = at(backend, make(torch.float32, **sizes))
    expected = outputs(op, case, backend='reference')
    dtype = dtypes_of(backend)[-1]
    half = {n: x.detach().to(dtype).requires_grad_() if n in 'qkv' else x for n, x in case.items()}
    with torch.autocast(case['q'].device.type, dtype):
        results = outputs(op, half, backend=backend)
    for name, x in results.items():
        assert (x - expected[name]).abs().max() < 3e-2 * expected[name].abs().max(), name


@pytest.mark.parametrize(('op', 'make', 'sizes'), [op[:3] for op in OPS], ids=lambda x: getattr(x, '__name__', ''))
def test_auto_exports(op, make, sizes):
    class Module(torch.nn.Module):
        def forward(self, case):
            return op(**case)

    case = {name: x.detach() for name, x in make(torch.float32, **sizes).items()}
    exported = torch.export.export(Module(), (case,))
    torch.testing.assert_close(exported.module()(case), op(**case))


@pytest.mark.parametrize(('op', 'make', 'sizes'), [op[:3] for op in OPS], ids=lambda x: getattr(x, '__name__', ''))
def test_kernels_export_as_operators(op, make, sizes):
    """A graph that was exported with backend='triton' calls the operators of this package."""

    class Module(torch.nn.Module):
        def forward(self, case):
            return op(**case, backend='triton')

    case = {name: x.detach() for name, x in at('triton', make(torch.float32, **sizes)).items()}
    exported = torch.export.export(Module(), (case,))
    assert 'dat_mm.triton' in exported.graph_module.code
    torch.testing.assert_close(exported.module()(case), op(**case, backend='triton'))


@pytest.mark.parametrize(
    ('options', 'reason'),
    [({'bias': torch.zeros(())}, 'it takes a table, not a bias'), ({'dropout': 0.5}, 'it has no dropout')],
)
def test_a_named_backend_raises_its_reason(options, reason):
    case = deformable_case(torch.float32, **MAPS['groups'])
    with pytest.raises(RuntimeError, match=f"backend 'separable': {reason}"):
        deformable_attention(**case, **options, backend='separable')


def chosen(case, **options):
    """The name of the backend that 'auto' takes for a call."""
    names = {name: b._replace(run=name) for name, b in backends.DEFORMABLE.items()}
    call = {'bias': None, 'dropout': 0.0, 'convention': 'datpp', 'scale': 1.0} | case | options
    return backends.choose(names, 'auto', call)


def test_auto_takes_what_can_and_is_faster():
    large = deformable_case(torch.float32, H=40, W=40, T=(14, 14), K=1600)
    assert chosen(large) == 'separable'
    assert chosen(large, dropout=0.5) != 'separable'
    assert chosen(large, bias=torch.zeros(())) != 'separable'
    assert chosen(deformable_case(torch.float32, **MAPS['one pixel'])) == 'reference'


def test_dropout_drops():
    case = deformable_case(torch.float64, **MAPS['groups'])
    mean = torch.stack([deformable_attention(**case, dropout=0.2) for _ in range(400)]).mean(0)
    expected = deformable_attention(**case)
    assert not torch.equal(deformable_attention(**case, dropout=0.2), expected)
    assert (mean - expected).abs().mean() < 0.1 * expected.abs().mean()


@pytest.mark.parametrize('convention', grid.CONVENTIONS)
@pytest.mark.parametrize('backend', [name for name in backends.DEFORMABLE if torch.float64 in dtypes_of(name)])
def test_gradients_by_differences(backend, convention):
    case = deformable_case(torch.float64, H=3, W=4, T=(2, 4), K=3, M=2, G=1, D=2)
    assert torch.autograd.gradcheck(
        lambda *a: deformable_attention(*a, convention=convention, backend=backend), tuple(case.values())
    )
