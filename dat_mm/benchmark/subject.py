# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The model of a case, built and timed in this process, whose memory is the one that is measured."""

import ctypes
import math
import re
import resource
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .. import ops
from ..complexity import Classifier
from ..errors import UserError
from ..models import DAT, DeformableAttention
from .cases import OP, Case

CLASSES = 1000
# What the profiler calls matrix products and convolutions; attention that PyTorch fuses is not among them.
PRODUCTS = re.compile(
    r'aten::(((add|addb|b|baddb)?mm|addmv|mv|dot)_?|_addmm_activation|\w*conv\w*)|(aten::mkldnn|mkldnn::)_linear\w*'
)
STAGES = (0, 1, 2, 3)


class Op(nn.Module):
    """Calls the op as dat-tiny's stage 3 does: 12 heads of width 32 in 3 groups, a table of 14, a key a query."""

    def __init__(self, case: Case):
        super().__init__()
        self.backend = case.backend
        height, width = case.size
        keys = height * width
        dtype = torch.float32 if case.dtype == 'amp' else getattr(torch, case.dtype)
        # As in the model, heads lie side by side in memory, and points near those of a grid.
        self.q = nn.Parameter(torch.randn(case.batch, height, width, 12, 32).to(dtype))
        self.k, self.v = (nn.Parameter(torch.randn(case.batch, keys, 12, 32).to(dtype)) for _ in range(2))
        points = ops.grid.key_grid(height, width, 'dat').view(keys, 2)
        self.points = nn.Parameter(points + torch.randn(case.batch, 3, keys, 2) / max(case.size))
        self.table = nn.Parameter(torch.randn(12, 27, 27))

    def forward(self, _):
        return ops.deformable_attention(
            self.q.permute(0, 3, 1, 2, 4),
            *(x.transpose(1, 2) for x in (self.k, self.v)),
            *(self.points, self.table),
            convention='dat',
            backend=self.backend,
        )


def build_timm(case: Case, name: str) -> nn.Module:
    """Builds a model of timm, for the task of the case."""
    import timm

    options = dict(num_classes=CLASSES) if case.task == 'classify' else dict(features_only=True)
    if name not in timm.list_models():
        raise UserError(f'timm {timm.__version__} has no model {name!r}')
    try:  # told the size, Swin makes the masks of its windows once
        return timm.create_model(name, img_size=case.size, **options)
    except TypeError:  # a convolutional network has no img_size
        return timm.create_model(name, **options)


def build_mmpretrain(case: Case, kind: str, arch: str) -> nn.Module:
    """Builds a backbone of mmpretrain, for the task of the case."""
    from mmpretrain.registry import MODELS
    from mmpretrain.utils import register_all_modules

    register_all_modules()
    small = dict(pad_small_map=True) if kind.startswith('Swin') else {}
    backbone = MODELS.build(dict(type=kind, arch=arch, out_indices=STAGES, **small))
    if case.task == 'features':
        return backbone
    with torch.no_grad():
        return Classifier(backbone, CLASSES, channels=backbone(torch.zeros(2, 3, 64, 64))[-1].shape[1])


def build(case: Case) -> nn.Module:
    """Builds the model of a case, in float32 on the CPU."""
    if case.model == OP:
        return Op(case)
    package, _, name = case.model.partition('/')
    if package == 'timm':
        return build_timm(case, name)
    if package == 'mmpretrain':
        return build_mmpretrain(case, *name.split('/'))
    if case.task == 'classify':
        return Classifier(DAT(case.model, backend=case.backend, with_cp=case.with_cp), CLASSES)
    return DAT(case.model, out_indices=STAGES, backend=case.backend, with_cp=case.with_cp)


def count_logits(model: nn.Module, size) -> int:
    """Counts the logits, a query by a key, of all deformable attentions for one image."""
    if isinstance(model, Op):
        return 12 * math.prod(size) ** 2
    backbone, total = getattr(model, 'backbone', model), 0
    for i, stage in enumerate(backbone.stages if isinstance(backbone, DAT) else ()):
        height, width = (-(-n // (4 << i)) for n in size)
        for module in stage.modules():
            if isinstance(module, DeformableAttention):
                total += module.heads * height * width * math.prod(module.offset_net.key_map_size(height, width))
    return total


def read_memory(field: str) -> int:
    """Reads the memory of this process in bytes: 'VmRSS' is what it has now, 'VmHWM' the most it has had."""
    try:
        return 1024 * int(re.search(rf'{field}:\s+(\d+)', Path('/proc/self/status').read_text())[1])
    except (OSError, TypeError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == 'darwin' else 1024 * peak


def trim() -> None:
    """Gives freed memory back to the system, so that the peak starts from here."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # else the peak of loading counts too; that of a large case is higher
        Path('/proc/self/clear_refs').write_text('5')


class Subject:
    """Holds the model of a case, ready to run, with its input; `time` runs it."""

    def __init__(self, case: Case, threads: int | None = None):
        if threads:
            torch.set_num_threads(threads)
        if case.device == 'cuda':
            torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        self.case, self.cuda = case, case.device == 'cuda'
        self.dtype = torch.float32 if case.dtype == 'amp' else getattr(torch, case.dtype)
        if case.runtime != 'torch':
            self.open_file(threads)
            return
        model = build(case)
        self.logits = case.batch * count_logits(model, case.size)
        self.model = model.to(case.device)
        if case.model != OP:  # the op has its dtypes: coordinates and table stay in float32
            self.model.to(self.dtype)
        self.model.train(case.mode != 'inference')
        if case.compiled:
            self.model = torch.compile(self.model)
        if case.model == OP:
            self.images = None
        else:
            self.images = torch.randn(case.batch, 3, *case.size).to(case.device, self.dtype)
        self.labels = torch.arange(case.batch, device=case.device) % CLASSES
        if case.mode == 'training':
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.05)
        square = torch.ones(256, 256, device=case.device, dtype=self.dtype, requires_grad=True)
        (square @ square).sum().backward()  # starts threads and makes workspaces, before memory is read
        del square
        self.sync()
        trim()
        self.base = torch.cuda.memory_allocated() if self.cuda else read_memory('VmRSS')

    def open_file(self, threads: int | None) -> None:
        """Takes a file and its runtime in the place of the model."""
        from .exported import open_case

        self.model, self.logits = open_case(self.case, threads or torch.get_num_threads()), 0
        self.images = torch.randn(self.case.batch, 3, *self.case.size).numpy()
        trim()
        self.base = read_memory('VmRSS')

    def sync(self) -> None:
        """Waits for the GPU, if that is what runs."""
        if self.cuda:
            torch.cuda.synchronize()

    def loss(self, outputs):
        """Computes what to go backward from: the cross entropy of logits, or the sum of the means of maps."""
        if self.case.task == 'classify':
            return F.cross_entropy(outputs.float(), self.labels)
        return sum(x.mean() for x in ([outputs] if torch.is_tensor(outputs) else outputs))

    def step(self) -> None:
        """Does what the mode of the case says, once."""
        if self.case.runtime != 'torch':
            self.model.run(self.images)
            return
        cast = torch.autocast(self.case.device, torch.bfloat16) if self.case.dtype == 'amp' else nullcontext()
        if self.case.mode == 'inference':
            with torch.inference_mode(), cast:
                self.model(self.images)
            return
        with cast:
            loss = self.loss(self.model(self.images))
        loss.backward()
        if self.case.mode == 'training':
            self.optimizer.step()
        self.model.zero_grad()

    def time(self, number: int = 1) -> dict:
        """Runs `number` steps; returns the seconds of one, the peak of memory, and its part above weights and input."""
        self.sync()
        if self.cuda:  # every time anew: tuning in the first steps does not count
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        for _ in range(number):
            self.step()
        self.sync()
        seconds = (time.perf_counter() - start) / number
        peak = torch.cuda.max_memory_allocated() if self.cuda else read_memory('VmHWM')
        return dict(seconds=seconds, peak=peak, memory=max(peak - self.base, 0), logits=self.logits)

    def products(self) -> dict:
        """Runs a step under the profiler, and returns how long its products took: no step of theirs takes less."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as seen:
            self.step()
        microseconds = sum(op.self_cpu_time_total for op in seen.key_averages() if PRODUCTS.fullmatch(op.key))
        return dict(products=[microseconds / 1e6])
