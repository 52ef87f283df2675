# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Attention while a model trains: numbers and a picture at each evaluation, for mmengine's visualizer."""

from contextlib import ExitStack

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor

from ..registry import HOOKS
from .figures import as_pixels, draw
from .geometry import Placement
from .record import record
from .statistics import summary
from .view import Box, View, boxes_of

CONVERSIONS = ('_channel_conversion', 'channel_conversion', 'to_rgb')  # the toolboxes' names for BGR to RGB


@HOOKS.register_module()
class AttentionHook(Hook):
    """Logs offset statistics and one picture of the attention at each evaluation, from its first batch.

    It is off unless a config has it: ``default_hooks.attention.type=dat_mm.AttentionHook``. The numbers are
    ``attention/LAYER/offset`` (pixels of the input, a mean), ``.../offset_max`` and ``.../similarity``.

    Args:
        layer: the layer of the picture; None chooses one.
        figure: the kind of the picture, from visualize/figures.py.
        interval: draw at every so many evaluations.
        score_thr: detections below it are not drawn.
    """

    priority = 'LOW'

    def __init__(self, layer: str | None = None, figure: str = 'overview', interval: int = 1, score_thr: float = 0.3):
        if interval < 1:
            raise ValueError(f'interval={interval} is not positive')
        self.layer, self.figure, self.interval, self.score_thr = layer, figure, interval, score_thr
        self._evaluations = 0
        self._open = ExitStack()
        self._recording = None

    def before_val_epoch(self, runner) -> None:
        self._close()
        self._evaluations += 1

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        due = (self._evaluations - 1) % self.interval == 0
        if batch_idx == 0 and due and is_main_process():
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            self._recording = self._open.enter_context(record(model))

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._recording is None:
            return
        recording = self._recording
        self._close()  # first: whatever happens below, the model is as it was
        numbers = {
            f'attention/{layer.name}/{name}': value
            for layer in recording.layers()
            for name, value in summary(layer).items()
        }
        step = runner.iter
        runner.visualizer.add_scalars(numbers, step=step)
        preprocessor = getattr(runner.model, 'module', runner.model).data_preprocessor
        picture = first_picture(data_batch['inputs'], preprocessor)
        size = picture.shape[1], picture.shape[0]
        view = View(
            recording, picture, Placement(size), layer_name=self.layer, boxes=self._boxes(runner, outputs), title='val'
        )
        runner.visualizer.add_image(f'attention_{self.figure}', as_pixels(draw(view, self.figure)), step=step)

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._close()

    def _close(self) -> None:
        self._open.close()
        self._recording = None

    def _boxes(self, runner, outputs) -> list[Box]:
        """The detections in the first picture, in pixels of the model's input."""
        if not outputs:
            return []
        classes = (getattr(runner.visualizer, 'dataset_meta', None) or {}).get('classes')
        return boxes_of(
            outputs[0], classes, self.score_thr, lambda x: Placement.from_meta(outputs[0].metainfo).to_input(x)
        )


def first_picture(inputs, preprocessor) -> np.ndarray:
    """The first picture of a batch as a toolbox feeds it, before normalisation and padding, as (H, W, 3) in RGB."""
    first: Tensor = inputs[0]
    pixels = first.detach().cpu().permute(1, 2, 0).numpy()
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    swap = any(getattr(preprocessor, name, False) for name in CONVERSIONS)
    return np.ascontiguousarray(pixels[..., ::-1] if swap else pixels)
