# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Networks written as ONNX: standard operators, images of any size or of one, and what a user has to know."""

import ast
import json
import logging
import math
import warnings
from collections.abc import Collection, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..weights import written_whole
from .blocks import as_nodes, fill_in, find_blocks, short
from .networks import Network

OPSET = 18  # the oldest that has all operators in the form that PyTorch writes
SCOPES = 'pkg.torch.onnx.name_scopes'
PREFIX = 'dat_mm.'  # of the names of metadata
TEXTS = ('config', 'precision', 'task', 'version')  # metadata that is text; the rest is JSON
EXAMPLE = (256, 320)  # the height and width that a graph of any size is traced at
BLOCK_EXAMPLE = (20, 24)  # that of a block
FREE = torch.export.Dim.AUTO  # an axis that may have any size


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


def write_onnx(
    network: Network, path, *, shape=None, batch=None, metadata: dict, opened: Collection[nn.Module] = ()
) -> None:
    """Writes a network to a file. It takes images of any size unless `shape` says (height, width).

    It takes any number of them at once unless `batch` says how many.

    The values of `metadata` are text, or what JSON can hold. `opened` are modules that the network takes outputs from.
    """
    import onnx

    image = example(network, shape or EXAMPLE, batch or 2)
    height, width = (1, 2) if network.pixels is not None else (2, 3)
    sizes = ({} if batch else {0: 'batch'}) | ({} if shape else {height: 'height', width: 'width'})
    found = find_blocks(network, opened)
    with as_nodes(found) as maps:
        model = _translate(_Outputs(network), (image,), (dict.fromkeys(sizes, FREE),), ['image'], network.outputs)
    model.graph.name = network.task
    _name_sizes(model.graph, sizes)

    def write_block(module, number, weights):
        *size, channels = maps[number]
        x = torch.zeros(batch or 2, *(size if shape else BLOCK_EXAMPLE), channels)
        free = dict.fromkeys([*([] if batch else [0]), *([] if shape else [1, 2])], FREE)
        names = ['x', *(f'weight{n}' for n in range(len(weights)))]
        return _translate(module, (x, weights), (free, [{} for _ in weights]), names, ['y'])

    fill_in(model, found, write_block)
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=PREFIX + key, value=text)
    with written_whole(Path(path)) as partial:
        onnx.save(model, str(partial))


def _translate(module: nn.Module, inputs: tuple, sizes: tuple, names: list[str], outputs: Sequence[str]):
    """Writes a module as an ONNX model. `sizes` says of each input which axes are FREE."""
    import onnx_ir

    with _quiet(), torch.no_grad():
        # in two steps: inside of torch.onnx.export, mmdet takes paths that it has no more files for
        program = torch.export.export(module, inputs, dynamic_shapes=sizes)
        program = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.gelu.default: _gelu},
            input_names=names,
            output_names=list(outputs),
            verbose=False,
        )
    _name_nodes(program.model.graph)
    return onnx_ir.to_proto(program.model)


def _gelu(x, approximate: str = 'none'):
    """GELU in the order of operators that ONNX Runtime joins into one. PyTorch writes another order."""
    from onnxscript import opset18 as op

    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, math.sqrt(2))), 1.0)), 0.5)


def _name_sizes(graph, names: dict[int, str]) -> None:
    """Calls the free sizes of the image by their names, there and in the outputs that have the same sizes."""
    image = graph.input[0].type.tensor_type.shape.dim
    known = {image[axis].dim_param: name for axis, name in names.items()}
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in known:
                size.dim_param = known[size.dim_param]


def _name_nodes(graph) -> None:
    """Calls each node by its module and its operator, and drops what else PyTorch says about it.

    Such names are what tools show that draw a graph, and what one says to them to keep a layer in float32.
    """
    for number, node in enumerate(graph.all_nodes()):
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, '[]'))
        module = short(scopes[-2]) if len(scopes) > 1 else ''
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
