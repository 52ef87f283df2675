# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The Triton kernels read and write only their tensors, compile for GPUs, and repeat to the bit on one."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interpreter import programs_in_random_order
from op_cases import DEVICE, KERNELS, at, deformable_case, dtypes_of, neighborhood_case, outputs, sampling_case

from dat_mm.ops import deformable_attention, fused, neighborhood_attention, sample_features
from dat_mm.ops.fused import neighborhood

pytestmark = pytest.mark.one_stack

ROOT = Path(__file__).parents[2]
MARGIN = 1024  # poisoned numbers before and after each tensor
POISON = {True: float('nan'), False: -(1 << 30)}
CASES = {
    'deformable': (deformable_attention, deformable_case, {'B': 2, 'H': 7, 'W': 11, 'T': (3, 5), 'K': 19, 'D': 20}),
    'neighborhood': (neighborhood_attention, neighborhood_case, {'H': 9, 'W': 13, 'kernel_size': 7}),
    'sampling': (sample_features, sampling_case, {'H': 7, 'W': 5, 'Hk': 3, 'Wk': 6, 'C': 10}),
}
each_op = pytest.mark.parametrize(('op', 'make', 'sizes'), CASES.values(), ids=CASES)
each_dtype = pytest.mark.parametrize('dtype', dtypes_of('triton'), ids=lambda x: str(x).removeprefix('torch.'))


class Guarded:
    """Wraps a kernel so that its tensors lie between poison, which it must neither read nor change."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.launches += 1
            tensors = [x for x in args if torch.is_tensor(x)]
            buffers = [self.buffer(x.data) for x in tensors]
            copies = iter([x for _, x in buffers])
            self.kernel[grid](*(next(copies) if torch.is_tensor(x) else x for x in args), **options)
            for x, (buffer, copy) in zip(tensors, buffers, strict=True):
                x.data.copy_(copy)
                copy.fill_(POISON[x.is_floating_point()])
                clean = buffer.isnan() if x.is_floating_point() else buffer == POISON[False]
                assert clean.all(), 'it wrote beside a tensor'

        return launch

    @staticmethod
    def buffer(x):
        """A poisoned buffer, and in its middle a copy of x with the same strides."""
        length = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1 if x.numel() else 0
        buffer = x.new_full((length + 2 * MARGIN,), POISON[x.is_floating_point()])
        copy = buffer.as_strided(x.shape, x.stride(), MARGIN)
        return buffer, copy.copy_(x)


@pytest.fixture
def guards(monkeypatch):
    guards = []
    for file, names in KERNELS.items():
        kernels = importlib.import_module(f'dat_mm.ops.fused.{file}_kernels')
        for name in names:
            guards.append(Guarded(getattr(kernels, name)))
            monkeypatch.setattr(kernels, name, guards[-1])
    return guards


@each_dtype
@each_op
def test_kernels_keep_to_their_tensors(guards, op, make, sizes, dtype):
    case = {name: x.to(DEVICE) for name, x in make(dtype, **sizes).items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in case.items()}
    expected = outputs(op, exact, backend='reference')
    for name, x in outputs(op, case, backend='triton').items():
        assert (x - expected[name]).abs().max() < 0.02 * expected[name].abs().max(), name
    assert any(guard.launches for guard in guards)


BLOCKS = {
    'deformable': {'H': 9, 'W': 15, 'T': (6, 7), 'K': 70, 'M': 2, 'G': 1},  # three blocks of queries, and of keys
    'neighborhood': {'H': 10, 'W': 11, 'kernel_size': 7, 'M': 1},
}
# Blocks depend on the width of a head and the bytes of a number: each pair of these is met, and each dtype.
WIDTHS = [
    (16, torch.float32),
    (48, torch.float32),
    (128, torch.float32),
    (16, torch.float16),
    (48, torch.bfloat16),
    (128, torch.bfloat16),
]


@pytest.mark.slow
@pytest.mark.skipif(not fused.interprets(), reason='on a GPU all tests have these blocks, and no order')
@pytest.mark.parametrize(('width', 'dtype'), WIDTHS, ids=lambda x: str(x).removeprefix('torch.'))
@pytest.mark.parametrize('name', BLOCKS)
def test_blocks_of_a_gpu_in_any_order(name, dtype, width, monkeypatch):
    """The blocks that a GPU gets, and programs in another order, give the same numbers."""
    monkeypatch.setattr(importlib.import_module('dat_mm.ops.fused.deformable'), 'interprets', lambda: False)
    op, make, _ = CASES[name]
    case = make(dtype, D=width, **BLOCKS[name])
    exact = {n: x.detach().double().requires_grad_() for n, x in case.items()}
    expected, first = outputs(op, exact, backend='reference'), outputs(op, case, backend='triton')
    for n, x in first.items():
        error = (x - expected[n]).abs().max() / expected[n].abs().max().clamp(1)
        assert error < {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype], (n, float(error))
    with programs_in_random_order(seed=width):
        again = outputs(op, case, backend='triton')
    assert all(torch.equal(first[n], again[n]) for n in first)


def test_a_program_that_depends_on_another_would_be_seen():
    """The order of chance is one: each program runs once, and not in the order of the grid."""
    from triton.runtime import interpreter

    builder, seen = interpreter.interpreter_builder, []
    with programs_in_random_order(seed=0):
        builder.set_grid_dim(20, 1, 1)
        for x in range(20):
            builder.set_grid_idx(x, 0, 0)
            seen.append(builder.grid_idx[0])
    assert sorted(seen) == list(range(20)) and seen != sorted(seen)


needs_gpu = pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
LARGE = {
    'deformable': {'B': 2, 'H': 50, 'W': 80, 'T': (14, 14), 'K': 1000, 'M': 6, 'G': 3, 'D': 32},
    'neighborhood': {'B': 2, 'H': 100, 'W': 168, 'kernel_size': 7, 'D': 32},
    'sampling': {'H': 50, 'W': 80, 'Hk': 50, 'Wk': 80, 'G': 3, 'C': 384},
}


@needs_gpu
@each_dtype
@pytest.mark.parametrize('name', LARGE)
def test_kernels_agree_and_repeat_on_large_maps(name, dtype):
    op, make, _ = CASES[name]
    case = {n: x.detach().to(DEVICE).requires_grad_() for n, x in make(dtype, **LARGE[name]).items()}
    exact = {n: x.detach().double().requires_grad_() for n, x in case.items()}
    expected, first = outputs(op, exact, backend='reference'), outputs(op, case, backend='triton')
    for n, x in first.items():
        assert (x - expected[n]).norm() < (1e-4 if dtype == torch.float32 else 2e-2) * expected[n].norm(), n
    for _ in range(20):
        again = outputs(op, case, backend='triton')
        assert all(torch.equal(first[n], again[n]) for n in first)


@needs_gpu
@each_dtype
@pytest.mark.parametrize('width', [16, 24, 64, 128])
@pytest.mark.parametrize('name', ['deformable', 'neighborhood'])
def test_widths_of_heads_agree(name, width, dtype):
    op, make, sizes = CASES[name]
    case = {n: x.detach().to(DEVICE).requires_grad_() for n, x in make(dtype, **sizes | {'D': width}).items()}
    exact = {n: x.detach().double().requires_grad_() for n, x in case.items()}
    expected = outputs(op, exact, backend='reference')
    for n, x in outputs(op, case, backend='triton').items():
        assert (x - expected[n]).norm() < (1e-4 if dtype == torch.float32 else 2e-2) * expected[n].norm(), n


def crops(number: int, size: int):
    """Pictures of objects from Shapes, and their classes."""
    from dat_mm.datasets.annotate import crop_object
    from dat_mm.datasets.shapes import scene_of

    images, labels = [], []
    while len(labels) < number:
        scene = scene_of(len(images), 'train', 0, 96, 0.05)
        found = [k for k in range(len(scene.labels)) if not scene.crowd[k]][: number - len(labels)]
        images += [torch.from_numpy(crop_object(scene, k, size).copy()) for k in found]
        labels += [int(scene.labels[k]) for k in found]
    return (torch.stack(images).permute(0, 3, 1, 2).float() - 116) / 58, torch.tensor(labels)


def train(arch: str, backend: str, images, labels, steps: int, batch: int) -> list[float]:
    """Trains a classifier for some steps and returns its losses."""
    from dat_mm import DAT

    torch.manual_seed(0)
    backbone = DAT(arch, backend=backend, drop_path_rate=0.0)
    head = torch.nn.Linear(192, 8)
    model = torch.nn.ModuleList([backbone, head]).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        at = torch.arange(step * batch, (step + 1) * batch) % len(labels)
        x, y = images[at].to(DEVICE), labels[at].to(DEVICE)
        loss = torch.nn.functional.cross_entropy(head(backbone(x)[-1].mean((2, 3))), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize('arch', ['dat-nano', 'datpp-nano'])
def test_training_on_shapes_goes_as_with_the_reference(arch):
    pytest.importorskip('mmengine')
    steps, batch, size = (200, 64, 96) if DEVICE == 'cuda' else (2, 2, 32)
    data = crops(steps * batch // 4, size)
    ours, expected = (train(arch, backend, *data, steps, batch) for backend in ('triton', 'reference'))
    torch.testing.assert_close(ours[:10], expected[:10], rtol=5e-3, atol=0)
    for start in range(0, steps, 50):
        mean, other = (sum(losses[start : start + 50]) / len(losses[start : start + 50]) for losses in (ours, expected))
        assert abs(mean - other) < 0.1 * other


@pytest.mark.parametrize(
    ('table', 'dtype'),
    [(True, torch.float32), (True, torch.bfloat16), (False, torch.float32), (False, torch.float16)],
    ids=lambda x: str(x).removeprefix('torch.'),
)
def test_bands_and_shares_agree(monkeypatch, dtype, table):
    """The backward goes through the map in bands of rows. Programs share queries and keys."""
    monkeypatch.setattr(fused.deformable, 'WORKSPACE', 2 * 2 * 20 * 40 * 7)  # the 16 rows go in bands of 6, 6 and 4
    case = deformable_case(dtype, B=2, H=16, W=40, T=(4, 9) if table else None, K=20, M=2)
    case = {n: None if x is None else x.detach().to(DEVICE).requires_grad_() for n, x in case.items()}
    expected = outputs(deformable_attention, case, backend='reference')
    for name, x in outputs(deformable_attention, case, backend='triton').items():
        error = (x - expected[name]).abs().max() / expected[name].abs().max()
        assert error < (1e-4 if dtype == torch.float32 else 2e-2), name


def test_places_of_queries_are_kept_for_later_calls_but_not_by_a_captured_graph(monkeypatch):
    """What is made while a graph of CUDA is captured or warmed up lies in memory that the graph uses again."""
    made, keep = [], fused.deformable.place_queries
    keep.cache_clear()
    kernels = importlib.import_module('dat_mm.ops.fused.packing_kernels')
    monkeypatch.setattr(kernels, 'place_queries', Counted(kernels.place_queries, made))
    case = deformable_case(torch.float32, H=3, W=4, T=(3, 4), K=2, M=1, G=1)
    case = {n: x.detach().to(DEVICE) for n, x in case.items()}
    expected = deformable_attention(**case, backend='triton')
    assert len(made) == 1 and torch.equal(deformable_attention(**case, backend='triton'), expected) and len(made) == 1
    monkeypatch.setattr(fused.deformable, 'may_keep', lambda device: False)  # as on a stream that captures
    for n in (2, 3):
        assert torch.equal(deformable_attention(**case, backend='triton'), expected) and len(made) == n
    assert keep.cache_info().currsize == 1
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = {n: mode.from_tensor(x) for n, x in case.items()}
        deformable_attention(**fakes | {'q': fakes['q'][:, :, 1:]}, backend='triton')
    assert keep.cache_info().currsize == 1


class Counted:
    """Wraps a kernel and writes each launch down."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        self.launches.append(grid)
        return self.kernel[grid]


@needs_gpu
def test_only_the_default_stream_keeps_tensors():
    device = torch.device(DEVICE)
    assert fused.deformable.may_keep(device)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert not fused.deformable.may_keep(device)


def test_bands_are_of_whole_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(fused.deformable, 'WORKSPACE', 1000)
    rows = {
        (logits, height): fused.deformable.rows_of_a_band(logits, height)
        for logits, height in ((10, 100), (10, 101), (30, 50), (100, 14), (5000, 14), (0, 3))
    }
    assert list(rows.values()) == [100, 96, 32, 10, 1, 3]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=['float32', 'float16'])
def test_packed_cells_of_a_table(dtype):
    """Each cell lies beside its neighbours. Far values fit into float16, and NaN stays."""
    table = torch.tensor([[[1.0, 2.0, 1e9], [float('nan'), -1e9, 5.0]]], device=DEVICE)
    half = dtype == torch.float16
    packed = fused.deformable.pack(table.mT.contiguous().mT, half).view(dtype).unflatten(-1, (5, -1))
    padded = torch.nn.functional.pad(table / torch.tensor(2.0).log(), (1, 2, 1, 3))
    padded = padded.clamp(-60000, 60000).half() if half else padded
    corners = [padded[:, j : j + 5, i : i + 5] for j in range(2 if half else 1) for i in range(2)]
    torch.testing.assert_close(packed, torch.stack(corners, -1), equal_nan=True)


@each_op
def test_no_images_give_empty_gradients(op, make, sizes):
    results = outputs(op, at('triton', make(torch.float32, **sizes | {'B': 0})), backend='triton')
    assert all(not x.numel() or not x.any() for x in results.values())


@each_op
@pytest.mark.parametrize('backend', ['triton', 'separable'])
def test_second_derivatives_are_refused(op, make, sizes, backend):
    if backend == 'separable' and op is not deformable_attention:
        return
    case = {n: x.detach().to(DEVICE).requires_grad_() for n, x in make(torch.float32, **sizes).items()}
    first = next(iter(case.values()))
    (grad,) = torch.autograd.grad(op(**case, backend=backend).square().sum(), first, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


def test_gradient_of_a_neighborhood_table_is_summed_in_float32():
    of_logits = torch.full((1, 1, 7, 7, 700, 7), 100.0, dtype=torch.float16)
    total = fused.neighborhood.table_gradient(of_logits)
    assert total.dtype == torch.float32 and total.isfinite().all() and total.max() > 65504


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, 'fp32_precision'), reason='torch has the old setting alone')
def test_precision_follows_either_setting():
    code = """
import torch
from dat_mm.ops.fused import precision
print(precision())
torch.set_float32_matmul_precision('high')
print(precision())
torch.backends.cuda.matmul.fp32_precision = 'ieee'
print(precision())
torch.backends.cuda.matmul.fp32_precision = 'tf32'
print(precision())
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.split() == ['tf32x3', 'tf32', 'tf32x3', 'tf32'], done.stderr


def test_maps_beyond_32_bits_are_refused():
    x = torch.empty(8, 2048, 2048, 600, device='meta')
    with pytest.raises(RuntimeError, match=r"backend 'triton': x .* is too large: 2\^31 numbers or more an image"):
        sample_features(x, torch.zeros(8, 1, 2, 2, 2), backend='triton')
    assert fused.why_not(x[:, :1700], of=1) == 'its kernels run on a GPU of NVIDIA, not on meta'


@pytest.mark.parametrize(('kernel_size', 'width', 'dtype'), [(61, 128, torch.float32), (121, 128, torch.float16)])
def test_neighborhoods_that_need_too_much_shared_memory_are_refused(kernel_size, width, dtype):
    """Compiled for capability 9.0 these two took 96 and 112 KiB. Capability 8.9 has 99."""
    x = torch.zeros(1, 1, kernel_size, kernel_size, width, dtype=dtype, device=DEVICE)
    message = f'neighborhoods of {kernel_size} are too large for its blocks with heads {width} wide in {dtype}'
    with pytest.raises(RuntimeError, match=message):
        neighborhood_attention(x, x, x, None, kernel_size=kernel_size, scale=1.0, backend='triton')
    assert neighborhood.why_not(x, x, x, kernel_size=29, dropout=0.0) is None


# Bytes of shared memory that a block may have, by compute capability.
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
# Bytes of registers that a kernel may spill, by bytes of a number and width of a head.
SPILLED = {(2, 32): 0, (2, 64): 0, (2, 128): 0, (4, 32): 100, (4, 64): 100, (4, 128): 120}
# The backward of deformable attention, with 16 bits and heads 128 wide: docs/gpu-kernels.md says why it is left so.
SPILLED_OF_WIDEST = 232
# By capability, dtypes, widths of heads and conventions. Heads of the published models are 32 wide, and these train in
# bfloat16, which is compiled for all. With that, any two values of these four are in one case at least.
COMPILED = {
    80: [('float32', 32, 'dat'), ('float16', 64, 'datpp'), ('float32', 128, 'datpp')],
    89: [('float32', 32, 'datpp'), ('bfloat16', 64, 'datpp'), ('float16', 128, 'dat')],
    90: [('float32', 32, 'dat'), ('bfloat16', 64, 'dat'), ('float16', 128, 'datpp')],
    100: [('float16', 32, 'dat'), ('float32', 64, 'datpp'), ('bfloat16', 128, 'dat')],
}
COMPILE = """
import json, sys
from dat_mm.benchmark.compile_kernels import compiled_kernels, usage
capability, cases = json.loads(sys.argv[1])
rows = {}
for name, compiled in compiled_kernels(cases, capability):
    loads = [line for line in compiled.asm['ptx'].splitlines() if 'ld.global' in line and '.b64' in line]
    several = [line for line in loads if '.v2.b64' in line or '.v4.b64' in line]
    rows[name] = usage(compiled) | {'words': len(loads), 'several': len(several)}
json.dump(rows, sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.parametrize('capability', SHARED)
def test_kernels_compile_for_gpus_that_are_not_here(capability, tmp_path):
    """A block fits a multiprocessor, and with 16 bits no kernel spills its registers.

    No lane loads two words of a table at once: neighbouring queries are not neighbours there where a row ends, though a
    hint to Triton says so.
    """
    environment = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'} | {'TRITON_CACHE_DIR': str(tmp_path)}
    cases = [('bfloat16', 32, 'dat'), ('bfloat16', 32, 'datpp'), *COMPILED[capability]]
    command = [sys.executable, '-c', COMPILE, json.dumps([capability, cases])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert not done.returncode, done.stderr
    rows = json.loads(done.stdout)
    assert {name.split(',')[0] for name in rows} >= {
        f'{file} {name}' for file, names in KERNELS.items() for name in names
    }
    for name, row in rows.items():
        assert row['shared'] <= SHARED[capability], (name, row)
        assert row['threads'] <= 1024 and row['registers'] * row['threads'] <= 65536, (name, row)
        dtype, width = name.split(', ')[-2:]
        widest = name.startswith('deformable backward') and (width, dtype != 'float32') == ('128', True)
        most = SPILLED_OF_WIDEST if widest else SPILLED[getattr(torch, dtype).itemsize, int(width)]
        assert row['spilled'] <= most, (name, row)
        if name.startswith(('deformable forward', 'deformable backward')):
            assert row['words'] and not row['several'], (name, row)


def test_a_cpu_is_told_that_the_kernels_want_a_gpu():
    code = """
import torch
from dat_mm.ops import neighborhood_attention, sample_features
x = torch.zeros(1, 1, 8, 8, 16)
neighborhood_attention(x, x, x)
sample_features(x[0], torch.zeros(1, 1, 2, 2, 2))
import sys
assert 'triton' not in sys.modules
neighborhood_attention(x, x, x, backend='triton')
"""
    environment = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.stderr.strip().endswith("backend 'triton': its kernels run on a GPU of NVIDIA, not on cpu"), done.stderr


def test_what_the_launcher_of_a_kernel_lacks_is_named(monkeypatch, tmp_path):
    """Triton compiles a small module of C before the first launch, with the headers of Python."""
    for name in ('CC', 'CPATH', 'C_INCLUDE_PATH'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fused.sysconfig, 'get_path', lambda *_: str(tmp_path))
    monkeypatch.setattr(fused.shutil, 'which', lambda name: None)
    assert fused._why_no_launcher().startswith('Triton needs a C compiler')
    monkeypatch.setenv('CC', 'cc')
    told = fused._why_no_launcher()
    assert told.endswith(f'there is no {tmp_path}/Python.h') and '\n' not in told
    (tmp_path / 'more').mkdir()
    (tmp_path / 'more' / 'Python.h').touch()
    monkeypatch.setenv('CPATH', f'/nowhere:{tmp_path}/more')
    assert fused._why_no_launcher() is None


def test_a_gpu_without_the_headers_of_python_is_told_so(monkeypatch):
    monkeypatch.setattr(fused, 'NO_LAUNCHER', "Triton needs Python's headers")
    assert fused._why_not_device(torch.device('cuda')) == "Triton needs Python's headers"


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        (
            {'q': torch.zeros(1, 4, 5, 6, 129), 'k': torch.zeros(1, 4, 7, 129)},
            'heads are 129 wide, it takes 128 at most',
        ),
        (
            {'q': torch.zeros(1, 4, 5, 6, 8, dtype=torch.float64)},
            'it wants one dtype, not torch.float32, torch.float64',
        ),
        ({'v': torch.zeros(1, 4, 7, 9)}, 'v is 9 wide and q 8'),
        ({'table': torch.zeros(4, 9, 401)}, 'the table is 9x401, it takes 300 cells along an axis at most'),
    ],
)
def test_reasons_of_deformable_attention(changes, reason):
    case = deformable_case(torch.float32, H=5, W=6, T=(5, 6), K=7) | changes
    with pytest.raises(RuntimeError, match=f"backend 'triton': {reason}"):
        deformable_attention(**case, backend='triton')
