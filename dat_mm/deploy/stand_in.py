# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""An exported file in the place of a toolbox's model, so that the toolbox tests it and predicts with it.

The model is built from its config, without weights. Its data preprocessor leaves the pixels alone, its network is the
file, and what follows, such as scaling boxes back to the picture, stays the toolbox's own.
"""

from types import MethodType

import numpy as np
import torch

from ..errors import UserError
from .boxes import NONE
from .runtimes import Exported

TASKS = {'mmpretrain': 'classification', 'mmseg': 'segmentation', 'mmdet': 'detection'}


def prepare_config(cfg, exported: Exported) -> None:
    """Changes a config so that its data preprocessor hands on RGB pixels from 0 to 255, without padding.

    Detectors get one image at a time: mmdet pads those of a batch to the largest, and a file takes each as it is.
    A file that is not for what the config's toolbox does is an error.
    """
    task = TASKS[cfg.default_scope]
    if exported.task != task:
        raise UserError(f'{exported.path} is for {exported.task}, and the config for {task}')
    if task == 'detection':
        cfg.test_dataloader.batch_size = 1
    for node in (cfg.get('data_preprocessor'), cfg.model.get('data_preprocessor')):
        if node:
            node['mean'] = node['std'] = None
            for key in ('to_rgb', 'bgr_to_rgb'):
                if key in node:
                    node[key] = True
            for key in ('pad_size_divisor', 'size', 'size_divisor', 'test_cfg'):
                node.pop(key, None)


def stand_in(model, exported: Exported) -> None:
    """Puts an exported file into a model of a toolbox, in the place of its network."""

    def outputs(inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        pixels = inputs.permute(0, 2, 3, 1).round().to(torch.uint8).cpu().numpy()
        found = exported(np.ascontiguousarray(pixels))
        return {name: torch.from_numpy(value).to(inputs.device) for name, value in found.items()}

    def classify(self, inputs, data_samples=None, **_):
        return self.head._get_predictions(outputs(inputs)['scores'].log(), data_samples)

    def segment(self, inputs, batch_img_metas):
        import torch.nn.functional as F

        logits = outputs(inputs)['logits']
        return F.interpolate(logits, inputs.shape[2:], mode='bilinear', align_corners=self.align_corners)

    def detect(self, batch_inputs, batch_data_samples, rescale=True):
        results = []
        for image, sample in zip(batch_inputs, batch_data_samples, strict=True):
            height, width = sample.img_shape[:2]
            found = outputs(image[None, :, :height, :width])
            results.append(instances(self, {name: value[0] for name, value in found.items()}, sample, rescale))
        return self.add_pred_to_datasample(batch_data_samples, results)

    name, method = {
        'classification': ('predict', classify),
        'segmentation': ('encode_decode', segment),
        'detection': ('predict', detect),
    }[exported.task]
    setattr(model, name, MethodType(method, model))


def instances(model, found: dict, sample, rescale: bool):
    """The detections of an image as mmdet has them, in pixels of the picture if asked."""
    from mmengine.structures import InstanceData

    real = found['scores'] > NONE
    result = InstanceData(bboxes=found['boxes'][real], scores=found['scores'][real], labels=found['labels'][real])
    scale = result.bboxes.new_tensor(sample.scale_factor).repeat(2) if rescale else 1.0
    if 'box_masks' in found:
        head = model.roi_head.mask_head
        head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
        head.class_agnostic = True  # what is in a box comes without a channel for each class
        result.masks = head._predict_by_feat_single(
            found['box_masks'][real][:, None],
            result.bboxes.clone(),
            result.labels,
            sample.metainfo,
            model.roi_head.test_cfg,
            rescale,
            activate_map=True,
        )
    result.bboxes = result.bboxes / scale
    return result
