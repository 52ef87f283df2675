# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Smaller files: weights in 16 bits, or products in 8.

What says where a point lies stays in float32: the network of the offsets, and the position biases. An error there moves
a point, and what an attention looks at with it.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..weights import written_whole
from .blocks import every_node
from .graph import module_of
from .runtimes import package

KEPT = ('offset_net', 'position_bias')  # modules that stay in float32, and the products of an attention itself
SMALLEST = 1024  # numbers: smaller weights stay as they are


def halve(source, target) -> None:
    """Writes an ONNX file with its weights in float16. They are float32 again where they are used."""
    onnx = package('onnx')
    model = onnx.load(str(source))
    casts, kept = [], {name for node in every_node(model.graph) if _kept(node) for name in node.input}
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or weight.name in kept:
            continue
        values = onnx.numpy_helper.to_array(weight)
        if values.size < SMALLEST or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = weight.name
        weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f'{name}.half'))
        casts.append(onnx.helper.make_node('Cast', [f'{name}.half'], [name], to=onnx.TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    with written_whole(Path(target)) as partial:
        onnx.save(model, str(partial))


def quantise(source, target, images: Iterable[np.ndarray]) -> None:
    """Writes an ONNX file whose linear layers and convolutions multiply in 8 bits.

    Weights have a scale for each output, and activations one for each layer, which the images decide. They are what
    the file takes, one batch after the other.
    """
    quantization = package('onnxruntime.quantization')
    onnx = package('onnx')
    folded = _folded(onnx.load(str(source)).graph)
    pre_process = package('onnxruntime.quantization.shape_inference').quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.images = iter(images)

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {'image': image}

    with tempfile.TemporaryDirectory() as folder, written_whole(Path(target)) as partial:
        prepared = Path(folder, 'prepared.onnx')
        pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        nodes = onnx.load(str(prepared)).graph
        weights = {weight.name for weight in nodes.initializer}
        chosen = [
            node.name
            for node in nodes.node
            if node.op_type in ('MatMul', 'Gemm', 'Conv')
            and node.input[1] in weights
            and node.name not in folded
            and not _kept(node)
        ]
        if not chosen:
            raise UserError(f'{source} has no linear layer or convolution to quantise')
        quantization.quantize_static(
            str(prepared),
            str(partial),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


def _folded(graph) -> set[str]:
    """The convolutions whose kernel is computed: 1 is added to its middle, and 8 bits leave little beside it."""
    weights = {weight.name for weight in graph.initializer}
    return {node.name for node in every_node(graph) if node.op_type == 'Conv' and node.input[1] not in weights}


def _kept(node) -> bool:
    """Whether a node is a part of what stays in float32."""
    module = module_of(node.name).split('.')
    return module[-1] == 'attn' or any(part in module for part in KEPT)
