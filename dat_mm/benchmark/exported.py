# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Cases that another runtime runs: the model is exported once, in a process of its own, and timed from its file."""

import multiprocessing
import os
import re
from pathlib import Path

import torch
from torch import nn

from ..deploy.graph import write_onnx
from ..deploy.networks import Network
from ..deploy.pixels import Preprocessing
from ..deploy.runtimes import OnnxFile, OpenVinoFile, write_openvino
from ..errors import UserError
from .cases import Case
from .run import FOLDER


class Outputs(Network):
    """A backbone or a classifier with its outputs as they are, by number."""

    task = 'benchmark'

    def __init__(self, model: nn.Module, size: tuple[int, int]):
        super().__init__(model.eval(), Preprocessing(), inside=False)
        with torch.no_grad():
            self.outputs = tuple(str(n) for n, _ in enumerate(self.maps(torch.zeros(1, 3, *size))))

    def maps(self, x):
        found = self.model(x)
        return [found] if torch.is_tensor(found) else list(found)

    def run(self, x, height, width):
        return dict(zip(self.outputs, self.maps(x), strict=True))


def export(case: Case, path: Path) -> None:
    """Writes the model of a case, for as many images of one size as it has."""
    from .subject import build

    torch.manual_seed(0)
    network = Outputs(build(case), case.size)
    metadata = dict(task=network.task, preprocessing=Preprocessing()._asdict(), inside=False)
    onnx = path.with_suffix('.onnx')
    if not onnx.exists():
        write_onnx(network, onnx, shape=case.size, batch=case.batch, metadata=metadata)
    if path.suffix == '.xml':
        write_openvino(onnx, path)


def open_case(case: Case, threads: int | None):
    """Opens the file of a case, which is written where there is none, and returns what runs it."""
    folder = Path(os.environ[FOLDER])
    suffix = '.onnx' if case.runtime == 'onnxruntime' else '.xml'
    name = re.sub(r'\W+', '-', f'{case.model} {case.backend} {case.size} {case.batch} {case.task}')
    path = folder / f'{name}{suffix}'
    if not path.exists():
        # elsewhere: what exporting takes is not the memory of the case
        process = multiprocessing.get_context('spawn').Process(target=export, args=(case, path))
        process.start()
        process.join()
        if process.exitcode:
            raise UserError(f'{case.name} was not exported: its process ended with code {process.exitcode}')
    if case.runtime == 'onnxruntime':
        return OnnxFile(path, threads=threads)
    precision = {'float32': 'f32', 'bfloat16': 'bf16'}[case.dtype]
    return OpenVinoFile(path, threads=threads, precision=precision)
