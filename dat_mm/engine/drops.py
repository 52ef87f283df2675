# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What is dropped of a sample follows from seed, iteration and its place in the batch of all processes."""

from functools import partial

import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from .seeds import MODEL, word


def _rate(layer: nn.Module) -> float:
    """The share of samples, or of channels of them, that a layer drops: such masks are small and drawn for everyone."""
    if isinstance(layer, nn.Dropout2d):
        return layer.p
    if type(layer).__name__ == 'DropPath':  # ours, or one of the toolboxes
        return getattr(layer, 'rate', None) or getattr(layer, 'drop_prob', None) or 0.0
    return 0.0


class DropBySample(Hook):
    """Draws the masks of drop path and of dropout of channels for the samples of all processes, and takes the own ones.

    A run on another number of processes then drops the same. Each layer has a generator of its own, so that a layer
    that is run again for its gradient drops the same too.
    """

    priority = 'VERY_HIGH'

    def __init__(self):
        self._seed, self._replaced = (0, 0), []

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        layers = [module for module in model.modules() if _rate(module)]
        for number, layer in enumerate(layers):
            layer.forward = partial(self._drop, layer, layer.forward, number)
            self._replaced.append(layer)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._seed = runner.seed, runner.iter

    def after_train(self, runner) -> None:
        for layer in self._replaced:
            del layer.forward
        self._replaced = []

    def _drop(self, layer, forward, number, x):
        if not layer.training or torch.compiler.is_compiling():
            return forward(x)
        rank, processes = get_dist_info()
        generator = torch.Generator(x.device).manual_seed(word(MODEL, *self._seed, number))
        samples = len(x)
        shape = (processes * samples, x.shape[1] if isinstance(layer, nn.Dropout2d) else 1, *[1] * (x.ndim - 2))
        keep = 1 - _rate(layer)
        mask = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep, generator=generator)
        return x * mask[rank * samples : (rank + 1) * samples] / keep
