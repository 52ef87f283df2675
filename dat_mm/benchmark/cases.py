# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A case is what is measured: one model in one situation. Groups of cases come from the options of the tool."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product

from ..arch import ARCHS
from ..errors import UserError

MODES = ('inference', 'backward', 'training')  # backward adds the gradients, training a step of AdamW too
DTYPES = ('float32', 'bfloat16', 'float16', 'amp')  # amp: weights in float32, under autocast to bfloat16
TASKS = ('features', 'classify')  # features: the maps of all stages; classify: 1000 logits
DEVICES = ('cpu', 'cuda')
RUNTIMES = ('torch', 'onnxruntime', 'openvino')  # what runs the model: PyTorch, or another from an exported file
OP = 'deformable-attention'  # the op alone, as in dat-tiny's stage 3; its size is that of the map


@dataclass(frozen=True)
class Case:
    """Describes one model in one situation."""

    model: str  # a name of ARCHS, timm/NAME, mmpretrain/TYPE/ARCH or OP
    size: tuple[int, int] = (224, 224)
    batch: int = 1
    dtype: str = 'float32'
    mode: str = 'inference'
    backend: str | None = 'auto'  # None: the model has none
    task: str = 'features'
    device: str = 'cpu'
    compiled: bool = False  # whether torch.compile is applied
    with_cp: bool | str = False  # what is computed again in the backward, as in dat_mm.DAT
    runtime: str = 'torch'  # one of RUNTIMES

    @property
    def name(self) -> str:
        """Names the model, and in brackets its backend, torch.compile and with_cp where they are not the default."""
        how = [] if self.backend in (None, 'auto') else [self.backend]
        how += [self.runtime] * (self.runtime != 'torch')
        how += ['compiled'] * self.compiled + [f'with_cp={self.with_cp}'] * bool(self.with_cp)
        return f'{self.model} ({", ".join(how)})' if how else self.model

    @property
    def profiled(self) -> bool:
        """Whether the profiler is asked how long the products take: on a GPU the kernels hide theirs from it."""
        return self.device == 'cpu' and self.runtime == 'torch' and not self.compiled

    @property
    def pixels(self) -> int:
        """Counts the pixels of the whole batch."""
        return self.batch * self.size[0] * self.size[1]


def read_size(text: str) -> tuple[int, int]:
    """Reads '224' or '800x1280', height first, as (height, width)."""
    match = re.fullmatch(r'([1-9]\d*)(?:x([1-9]\d*))?', text)
    if not match:
        raise UserError(f'size {text!r} is not like 224 or 800x1280')
    return int(match[1]), int(match[2] or match[1])


def check_one_of(what: str, values, known) -> None:
    """Raises, and lists what is known, if one of the values is not."""
    for value in values:
        if value not in known:
            raise UserError(f'{what} {value!r} is not known: there are {", ".join(known)}')


def check_peer(peer: str) -> None:
    """Raises unless a peer is named like timm/NAME or mmpretrain/TYPE/ARCH and its package is installed."""
    package, _, name = peer.partition('/')
    if package not in ('timm', 'mmpretrain') or not name or (package == 'mmpretrain') != ('/' in name):
        raise UserError(f'peer {peer!r} is not like timm/convnext_base or mmpretrain/SwinTransformer/tiny')
    if not find_spec(package):
        raise UserError(f'peer {peer!r}: {package} is not installed')


def check_runtimes(runtimes, archs, dtypes, modes, device) -> None:
    """Raises where a runtime beside PyTorch is asked for what it does not do."""
    known = {'onnxruntime': ['float32'], 'openvino': ['float32', 'bfloat16']}
    for runtime in set(runtimes) - {'torch'}:
        if not find_spec(runtime):
            raise UserError(f'runtime {runtime!r} is not installed: pip install "dat-mm[deploy]"')
        check_one_of(f'dtype for {runtime}', dtypes, known[runtime])
        check_one_of(f'mode for {runtime}', modes, ['inference'])
        check_one_of(f'device for {runtime}', [device], ['cpu'])
        check_one_of(f'arch for {runtime}', archs, ARCHS)


def make_groups(
    archs, peers, backends, sizes, batches, dtypes, modes, task, device, compiled, runtimes=('torch',)
) -> list[list[Case]]:
    """Combines all options. Cases that differ in the model alone form a group: they are timed side by side."""
    from ..ops.backends import DEFORMABLE, NEIGHBORHOOD

    check_one_of('arch', archs, (*ARCHS, OP))
    check_one_of('backend', backends, tuple(dict.fromkeys(('auto', *DEFORMABLE, *NEIGHBORHOOD))))
    for peer in peers:
        check_peer(peer)
    check_one_of('runtime', runtimes, RUNTIMES)
    check_runtimes(runtimes, archs, dtypes, modes, device)
    models = [*product(archs, backends), *((peer, None) for peer in peers)]
    if not models:
        raise UserError('there is nothing to measure: give --archs or --peers')
    return [
        [
            Case(model, size, batch, dtype, mode, backend, task, device, how, runtime=runtime)
            for (model, backend), runtime in product(models, runtimes)
            for how in ((False, True) if compiled and runtime == 'torch' else (False,))
        ]
        for size, batch, dtype, mode in product(sizes, batches, dtypes, modes)
    ]
