# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Blocks of a backbone, written once for each kind and put into the graph of a model with the weights of each.

To write a graph of any size takes PyTorch some 20 milliseconds a node, and more the more divisions a size went through.
A block has the sizes of its map alone, and a stage of eighteen blocks has two kinds of them.
"""

import re
from collections.abc import Collection
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.blocks import Block

DOMAIN, NAME = 'dat_mm', 'Block'  # of the node that stands for a block until it is filled in


def find_blocks(model: nn.Module, opened: Collection[nn.Module] = ()) -> dict[str, Block]:
    """The blocks of a model by their names, but for those with one of the opened modules inside."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Block) and not any(part in opened for part in module.modules())
    }


@contextmanager
def as_nodes(blocks: dict[str, Block]):
    """Makes one node of each block while a model is exported. Yields a dict of the (H, W, C) of each block's map."""
    maps = {}

    def node(number: int):
        def forward(x: Tensor) -> Tensor:
            maps[number] = tuple(x.shape[1:])
            return torch.onnx.ops.symbolic(
                f'{DOMAIN}::{NAME}', (x,), {'number': number}, dtype=x.dtype, shape=x.shape, version=1
            )

        return forward

    try:
        for number, block in enumerate(blocks.values()):
            block.forward = node(number)
        yield maps
    finally:
        for block in blocks.values():
            block.__dict__.pop('forward', None)


def short(name: str) -> str:
    """The name of a module in its model, without the wrappers around the model and around a block."""
    return re.sub(r'^(network\.)*(model\.|block\.)?', '', name)


class Weightless(nn.Module):
    """A block whose weights are inputs."""

    def __init__(self, block: Block):
        super().__init__()
        self.block = block
        self.names = list(_tensors(block))

    def forward(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        return torch.func.functional_call(self.block, dict(zip(self.names, weights, strict=True)), (x,))


def _tensors(block: Block) -> dict[str, Tensor]:
    return dict(block.named_parameters()) | dict(block.named_buffers())


def _kind(name: str, block: Block) -> tuple:
    """What blocks have in common that compute the same: a stage, a kind of attention, and shapes."""
    stage = name.rpartition('.')[0]
    mixer = type(getattr(block, 'attn', getattr(block, 'conv', None))).__name__
    return stage, mixer, tuple((key, tuple(x.shape), x.dtype) for key, x in _tensors(block).items())


def _subgraphs(node):
    return [attribute.g for attribute in node.attribute if attribute.HasField('g')]


def every_node(graph):
    """Yields the nodes of an ONNX graph, and those of the graphs inside them, such as the body of a loop."""
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from every_node(inner)


def _rename_values(graph, places: dict[str, str], prefix: str) -> None:
    """Gives all values of an ONNX graph, and of the graphs inside, their names in `places`, or a prefix."""

    def renamed(name: str) -> str:
        return places.get(name, f'{prefix}{name}') if name else name  # an input that is left out has no name

    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = renamed(value.name)
    for node in graph.node:
        node.input[:] = map(renamed, node.input)
        node.output[:] = map(renamed, node.output)
        for inner in _subgraphs(node):
            _rename_values(inner, places, prefix)


def fill_in(model, blocks: dict[str, Block], write) -> None:
    """Puts the nodes of each block into an ONNX model, in the place of the one that stands for it.

    `write` is called with a Weightless, the number of a block and its weights. It returns an ONNX model.
    """
    import onnx

    kinds, nodes, numbered = {}, [], list(blocks.items())
    for node in model.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        number = node.attribute[0].i
        name, block = numbered[number]
        tensors = {f'{name}.{key}': x.detach() for key, x in _tensors(block).items()}
        kind = _kind(name, block)
        if kind not in kinds:
            kinds[kind] = write(Weightless(block), number, list(tensors.values()))
        part = onnx.GraphProto()
        part.CopyFrom(kinds[kind].graph)
        places = dict(zip((value.name for value in part.input), (node.input[0], *tensors), strict=True))
        places[part.output[0].name] = node.output[0]
        _rename_values(part, places, f'{name}/')
        module = short(name)
        for inner in every_node(part):
            inner.name = f'{module}{"." if "/" in inner.name else "/"}{inner.name}'
        nodes.extend(part.node)
        model.graph.initializer.extend(part.initializer)
        model.graph.initializer.extend(onnx.numpy_helper.from_array(x.numpy(), key) for key, x in tensors.items())
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
