# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The outputs from which a page makes attention: the queries, keys and points of one deformable layer.

B images, M heads of width D, G groups, H x W queries, Hk x Wk keys.
"""

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...models.deformable import DeformableAttention
from ...visualize import record
from ...visualize.layer import Layer
from ...weights import written_whole
from ..networks import Network
from ..runtimes import package

PREFIX = 'attention_'  # of the names of these outputs
LEFT_OUT = ('logits', 'masks')  # of a network's outputs on the page, which makes masks from what is in the boxes


def find_layer(network: Network, image: Tensor, name: str | None = None) -> Layer | None:
    """Finds a deformable layer by a forward of a small image. Without a name it is the one that figures show.

    There is None where the model has no deformable attention, or where its keys are averages and have no points.
    """
    layer, reason = None, 'the model has no deformable attention'
    if any(isinstance(module, DeformableAttention) for module in network.modules()):
        with torch.no_grad(), record(network.model) as recording:
            network(image)
        layer = recording.layer(name)
        if layer.module.pooled:
            layer, reason = None, f'the keys of {layer.name} are averages of windows, and have no points'
    if layer is None and (name is not None or network.task == 'backbone'):
        raise UserError(f'--page: {reason}')
    return layer


class Watched(nn.Module):
    """A network with more outputs: what a deformable layer in it makes its attention from.

    They are queries (B, M, H, W, D), already scaled, keys (B, M, Hk, Wk, D), points (B, G, Hk, Wk, 2), and where the
    layer has them its table (B, M, Th, Tw) of position biases, or the biases (B, M, H W, Hk Wk) themselves.
    """

    def __init__(self, network: Network, layer: Layer):
        super().__init__()
        self.network = network
        self.found = [layer.module]  # in a list, so that its weights keep the names that they have in the network
        self.task, self.pixels = network.task, network.pixels
        names = ['q', 'k', 'points']
        names += [name for name in ('table', 'logits') if getattr(layer._bias, name) is not None]
        self.watched = tuple(PREFIX + name for name in names)
        self.outputs = network.outputs + self.watched

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        (module,), taken = self.found, {}

        def take_queries(_, args, bias):
            q, points, size = args
            taken.update(q=q, points=points.unflatten(2, tuple(size)), table=bias.table, logits=bias.logits)

        def take_keys(_, args, k):
            taken['k'] = k

        with ExitStack() as stack:
            for part, hook in ((module.position_bias, take_queries), (module.proj_k, take_keys)):
                stack.callback(part.register_forward_hook(hook).remove)
            found = self.network(image)
        for name in 'qk':
            taken[name] = taken[name].unflatten(-1, (module.heads, -1)).permute(0, 3, 1, 2, 4)  # (B, M, ., ., D)
        taken['q'] = taken['q'] * taken['q'].shape[-1] ** -0.5
        if taken['table'] is not None:
            taken['table'] = taken['table'].expand(image.shape[0], -1, -1, -1)
        if taken['logits'] is not None:
            sizes = (image.shape[0], module.heads, *(taken[name].shape[2] * taken[name].shape[3] for name in 'qk'))
            taken['logits'] = taken['logits'].expand(sizes)
        return found | {name: taken[name.removeprefix(PREFIX)] for name in self.watched}


def leave_out(source, target, names) -> None:
    """Writes an ONNX file without some of its outputs, and without what only they need."""
    onnx_ir = package('onnx_ir')
    passes = package('onnx_ir.passes.common')
    model = onnx_ir.load(str(source))
    kept = [output for output in model.graph.outputs if output.name not in names]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    passes.RemoveUnusedNodesPass()(model)
    with written_whole(Path(target)) as partial:
        onnx_ir.save(model, partial)
