# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Networks written as ONNX: standard operators, images of any size or of one, and what a user has to know."""

import ast
import json
import logging
import re
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..weights import written_whole
from .networks import Network

OPSET = 18  # the oldest that has all operators in the form that PyTorch writes
SCOPES = 'pkg.torch.onnx.name_scopes'
PREFIX = 'dat_mm.'  # of the names of metadata
EXAMPLE = (256, 320)  # the height and width that a graph of any size is traced at


class _Outputs(nn.Module):
    """A network whose outputs are a tuple."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(image).values())


@contextmanager
def _quiet():
    """Keeps PyTorch's words about its own work from the screen."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def example(network: Network, shape, batch: int = 2, channels: int = 3) -> Tensor:
    """Images of random pixels, as the network takes them."""
    generator = torch.Generator().manual_seed(0)
    if network.pixels is not None:
        return torch.randint(0, 256, (batch, *shape, channels), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, channels, *shape, generator=generator)


def write_onnx(network: Network, path, *, shape=None, metadata: dict) -> None:
    """Writes a network to a file. Batches are of any size, and images too unless `shape` says (height, width).

    The values of `metadata` are text, or what JSON can hold.
    """
    import onnx_ir

    image = example(network, shape or EXAMPLE)
    height, width = (1, 2) if network.pixels is not None else (2, 3)
    sizes = {0: 'batch'} | ({} if shape else {height: 'height', width: 'width'})
    free = dict.fromkeys(sizes, torch.export.Dim.AUTO)
    with _quiet(), torch.no_grad():
        # in two steps: inside of torch.onnx.export, mmdet takes paths that it has no more files for
        program = torch.export.export(_Outputs(network), (image,), dynamic_shapes=(free,))
        program = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=['image'],
            output_names=list(network.outputs),
            verbose=False,
        )
    model = program.model
    model.graph.name = network.task
    _name_sizes(model.graph, sizes)
    _name_nodes(model.graph)
    for key, value in metadata.items():
        model.metadata_props[PREFIX + key] = value if isinstance(value, str) else json.dumps(value)
    with written_whole(Path(path)) as partial:
        onnx_ir.save(model, partial)


def _name_sizes(graph, names: dict[int, str]) -> None:
    """Calls the free sizes of the image by their names, there and in the outputs that have the same sizes."""
    import onnx_ir

    (image,) = graph.inputs
    known = {str(image.shape[axis]): name for axis, name in names.items()}
    for value in (image, *graph.outputs):
        sizes = [size if isinstance(size, int) else known.get(str(size), str(size)) for size in value.shape]
        value.shape = onnx_ir.Shape(sizes)


def _name_nodes(graph) -> None:
    """Calls each node by its module and its operator, and drops what else PyTorch says about it.

    Such names are what tools show that draw a graph, and what one says to them to keep a layer in float32.
    """
    for number, node in enumerate(graph):
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, '[]'))
        module = re.sub(r'^(network\.)*(model\.)?', '', scopes[-2]) if len(scopes) > 1 else ''
        node.name = '/'.join(part for part in (module, f'{node.op_type}_{number}') if part)
        node.metadata_props.clear()
        node.doc_string = None
    for value in graph.initializers.values():
        value.metadata_props.clear()


def module_of(name: str) -> str:
    """The module that a node belongs to, from its name."""
    return name.rpartition('/')[0]


def read_metadata(properties: dict[str, str], path) -> dict:
    """Reads what `write_onnx` wrote as metadata from all properties of a file."""
    found = {key.removeprefix(PREFIX): value for key, value in properties.items() if key.startswith(PREFIX)}
    if 'task' not in found:
        raise UserError(f'{path} was not written by tools/export.py: it does not say what it is for')
    for key, value in found.items():
        if key not in TEXTS:
            found[key] = json.loads(value)
    return found


TEXTS = ('config', 'precision', 'task', 'version')
