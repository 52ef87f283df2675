# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Whether a kernel may be taken on this machine: it is tried once, and the verdict is kept on disk.

A trial runs the kernel on a small case, forward and backward, beside the reference in float64. A second question, asked
for each order of magnitude of the work, is whether it is faster than the backend that 'auto' would take in its place.
One process of a machine finds the answer, and the others read it, so that they all take the same backend.
"""

import hashlib
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache import cache_folder
from ..version import __version__
from .tracing import compiling

ENABLED = os.environ.get('DAT_MM_PROVE', '1') != '0'
MOST_WORK = 1 << 24  # of a timed call, in the units of its Trial; more is cut
PATIENCE = 120.0  # seconds that a process waits for another one that tries the same kernel
TOLERANCE = {'float32': 2e-4, 'float16': 1e-2, 'bfloat16': 4e-2}  # of the largest value; tests/ops are stricter
TF32 = 2e-2  # of float32, where the user lets products have ten bits


class Trial(NamedTuple):
    """How the backends of an op are tried."""

    table: dict  # the backends of the op by name
    case: Callable  # (dtype, width, how, size) -> (tensors by name, other arguments); without a size, a small case
    work: Callable  # (size) -> numbers that a call has to make, for one image


TRIALS: dict[str, Trial] = {}  # by op


class Question(NamedTuple):
    """What a verdict is about, in constants that a compiler may keep."""

    op: str
    backend: str
    device: str
    dtype: str
    width: int  # of a head, or the channels of a group
    how: tuple  # what else a kernel is compiled for


def question(op: str, backend: str, tensor: Tensor, width: int, how: tuple) -> Question:
    """The question about a backend for a call with such a tensor."""
    return Question(op, backend, str(tensor.device), str(tensor.dtype).removeprefix('torch.'), width, how)


def folder() -> Path:
    """Where the verdicts are kept, beside the wheels of mmcv that `make setup` compiled."""
    return cache_folder() / 'kernels'


def holds(question: Question, size: tuple, training: bool) -> bool:
    """Whether 'auto' may take a kernel for a call of this size, which starts with the number of images.

    In a graph that is being compiled the answer is a constant, and is about correctness alone.
    """
    if not ENABLED:
        return True
    if compiling():
        return _is_right(*question)
    is_timed = question.device.startswith('cuda')
    return _is_right(*question) and (not is_timed or _is_fast(question, *_cut(question, size), training))


def _is_right(*question) -> bool:
    return not _verdict(Question(*question), None, True)


# This is all that torch.compiler.assume_constant_result does, which imports the compiler, and that takes seconds.
_is_right._dynamo_marked_constant = True


def _is_fast(question: Question, size: tuple, magnitude: int, training: bool) -> bool:
    return not _verdict(question, size, training, magnitude)


_ANSWERS: dict[tuple, str] = {}  # by question, magnitude and training


def _cut(question: Question, size: tuple) -> tuple[tuple, int]:
    """A size with as many images, or rows of the map, as are enough for a time; and the magnitude of its work."""
    images, rows, *rest = size
    work = TRIALS[question.op].work
    one = max(1, work((1, rows, *rest)))
    images = max(1, min(images, MOST_WORK // one))
    if one > MOST_WORK:
        rows = max(1, rows * MOST_WORK // one)
    size = (images, rows, *rest)
    return size, work(size).bit_length()


def _verdict(question: Question, size, training: bool, magnitude: int = 0) -> str:
    """Why a kernel is not taken, or nothing. Without a size the question is whether it is right."""
    key = question, magnitude, training
    if key not in _ANSWERS:
        if _is_capturing(question.device):  # a graph of CUDA can be made of kernels alone, not of trials
            return 'not tried before a graph was captured'
        find = _why_wrong if size is None else _why_slow
        asked = dict(question._asdict(), **machine(question.device), magnitude=magnitude, training=training)
        answer = _keep(asked, lambda: find(question, size, training))
        if answer:
            warnings.warn(
                f"backend='auto' does not take the kernel {question.backend!r} of {question.op} for {question.dtype}, "
                f'width {question.width}, on {asked["name"]}: {answer}. The plain one runs; '
                'python -m dat_mm.doctor says more',
                stacklevel=2,
            )
        _ANSWERS[key] = answer
    return _ANSWERS[key]


@cache
def machine(device: str) -> dict:
    """What a verdict depends on beside the question."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    on = torch.device(device)
    name = torch.cuda.get_device_name(on) if on.type == 'cuda' else on.type
    sources = sorted(Path(__file__).parent.glob('fused/*.py'))
    code = hashlib.sha256(b''.join(path.read_bytes() for path in sources)).hexdigest()[:12]
    return dict(name=name, torch=torch.__version__, triton=triton_version, dat_mm=__version__, code=code)


def _is_capturing(device: str) -> bool:
    return device.startswith('cuda') and torch.cuda.is_current_stream_capturing()


# ---- one answer for all processes


def _read(file: Path) -> str | None:
    try:
        answer = json.loads(file.read_text())['answer']
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return answer if isinstance(answer, str) else None


def _keep(asked: dict, find: Callable[[], str]) -> str:
    """The answer in the file of what is asked. Where there is none, this process or one beside it finds it."""
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]
    file = folder() / f'{key}.json'
    lock = file.with_suffix('.lock')
    end = time.monotonic() + PATIENCE
    while True:
        if (answer := _read(file)) is not None:
            return answer
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            if time.monotonic() > end or _is_old(lock):  # its process was killed
                lock.unlink(missing_ok=True)
            time.sleep(0.05)
        except OSError:  # no place to write: each process for itself
            return find()
    try:
        answer = _read(file)  # of a process that was quicker
        if answer is None:
            answer = find()
            partial = file.with_suffix(f'.{os.getpid()}')
            with suppress(OSError):  # a full disk: the next process asks again
                partial.write_text(json.dumps(dict(asked, answer=answer), indent=1))
                partial.replace(file)
        return answer
    finally:
        lock.unlink(missing_ok=True)


def _is_old(lock: Path) -> bool:
    try:
        return time.time() - lock.stat().st_mtime > PATIENCE
    except OSError:
        return False


# ---- the trials


@contextmanager
def _undisturbed(device: str):
    """Neither autocast nor a mode of the caller, with gradients, and on the device of the call."""
    disabled = getattr(torch.utils._python_dispatch, '_disable_current_modes', nullcontext)
    on = torch.cuda.device(device) if device.startswith('cuda') else nullcontext()
    no_autocast = torch.autocast(torch.device(device).type, enabled=False)
    with on, disabled(), torch.inference_mode(False), torch.enable_grad(), no_autocast:
        yield


def results(function, tensors: dict, options: dict) -> dict[str, Tensor]:
    """The output of a function of tensors and all gradients, by name."""
    out = function(**tensors, **options)
    leaves = {name: x for name, x in tensors.items() if x is not None and x.requires_grad}
    if not leaves:
        return {'the output': out}
    # the same numbers in all dtypes
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out.device, out.dtype)
    grads = torch.autograd.grad(out, leaves.values(), weights, allow_unused=True)
    named = {f'the gradient of {name}': grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}
    return {'the output': out.detach()} | named


def at(tensors: dict, training: bool, device, dtype=None) -> dict:
    """The tensors on a device, as leaves of a graph in training."""
    return {
        name: None if x is None else x.detach().to(device, dtype).requires_grad_(training)
        for name, x in tensors.items()
    }


def _case(question: Question, size, training: bool):
    tensors, options = TRIALS[question.op].case(getattr(torch, question.dtype), question.width, question.how, size)
    return at(tensors, training, question.device), options


def _why_wrong(question: Question, size, training) -> str:
    """How the results of a kernel differ from those of the reference in float64 on the CPU."""
    from .fused import precision

    table = TRIALS[question.op].table
    tolerance = TF32 if question.dtype == 'float32' and precision() == 'tf32' else TOLERANCE[question.dtype]
    with _undisturbed(question.device):
        tensors, options = _case(question, size, True)
        try:
            found = results(table[question.backend].run, tensors, options)
            found = {name: x.double().cpu() for name, x in found.items()}
        except Exception as error:
            if (cause := _lost_device(question.device)) is not None:
                raise RuntimeError(f'{question.backend!r} of {question.op} left the GPU unusable: {cause}') from error
            return f'it does not run ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]})'
        expected = results(table['reference'].run, at(tensors, True, 'cpu', torch.float64), options)
    for name, right in expected.items():
        if name not in found:
            return f'{name} is missing'
        if not torch.isfinite(found[name]).all():
            return f'{name} is not finite'
        share = difference(found[name], right)
        if not share <= tolerance:
            return f'{name} differs by {share:.2g} of the largest value, more than {tolerance:g}'
    return ''


def difference(found: Tensor, right: Tensor) -> float:
    """The largest difference from the right numbers, which are of float64 on the CPU, as a share of the largest."""
    return ((found.double().cpu() - right).abs().max() / right.abs().max()).item()


def _lost_device(device: str) -> Exception | None:
    """The error that all work on a GPU ends with from now on, or None."""
    if device.startswith('cuda'):
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            return error
    return None


def _seconds(function) -> float:
    """The median time of a call on the GPU."""
    times = []
    for n in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        if n > 1:
            times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def _why_slow(question: Question, size, training: bool) -> str:
    """How much slower a kernel is than the backend that stands in for it."""
    table = TRIALS[question.op].table
    names = list(table)
    below = names[names.index(question.backend) + 1 :]
    took = {}
    try:
        with _undisturbed(question.device):
            tensors, options = _case(question, size, training)
            plain = next(name for name in below if table[name].takes(**tensors, **options))
            for name in (question.backend, plain):
                run = table[name].run
                took[name] = _seconds(lambda run=run: results(run, tensors, options))
    except RuntimeError:  # too large for what memory is left: the kernel needs the least
        return ''
    if took[question.backend] <= 1.1 * took[plain]:
        return ''
    times = ', '.join(f'{name} {value * 1e3:.3g} ms' for name, value in took.items())
    return f'it is slower at {"x".join(map(str, size))}: {times}'
