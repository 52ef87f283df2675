# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Detection transformers in bfloat16: what has no kernel for it, or would lose by it, runs in float32."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from dat_mm.commands.precision import cast_matching_heads, cast_multi_scale_sampling

SHAPES = Path(__file__).resolve().parents[2] / 'configs/shapes'


def build(name):
    """A model of Shapes with few queries and its inputs, two images of 64 x 64."""
    from mmdet.testing import demo_mm_inputs

    import_module('mmdet.utils').register_all_modules(init_default_scope=False)
    cfg = Config.fromfile(SHAPES / f'{name}.py')
    if 'num_queries' in cfg.model:
        cfg.model.num_queries = 20
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        model.init_weights()
        packed = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_classes=8, with_mask=True)
        return model, model.data_preprocessor(packed, training=True)


class Recorded:
    """Stands in for mmcv's autograd function, which needs a GPU, and keeps the number formats it was given."""

    def apply(self, value, shapes, starts, locations, weights, step):
        self.seen = {value.dtype, locations.dtype, weights.dtype}
        return value.flatten(2)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_multi_scale_attention_samples_bfloat16_in_float32(dtype, monkeypatch):
    from mmcv.ops import multi_scale_deform_attn as ops

    recorded = Recorded()
    monkeypatch.setattr(ops, 'MultiScaleDeformableAttnFunction', recorded)
    cast_multi_scale_sampling()
    cast_multi_scale_sampling()  # a second training in one process
    value = torch.ones(1, 6, 2, 4, dtype=dtype)
    found = ops.MultiScaleDeformableAttnFunction.apply(value, None, None, value, value, 64)
    assert recorded.seen == {torch.float32 if dtype == torch.bfloat16 else dtype}
    assert found.dtype == dtype and found.shape == (1, 6, 8)


def test_boxes_of_a_detr_are_float32():
    model, data = build('dino-3scale_datpp-nano_1xb4_shapes')

    def formats():
        found = {}
        hook = model.bbox_head.register_forward_hook(lambda *call: found.update(scores=call[2][0], boxes=call[2][1]))
        with torch.autocast('cpu', dtype=torch.bfloat16):
            losses = model.loss(data['inputs'], data['data_samples'])
        hook.remove()
        return found['boxes'].dtype, losses

    assert formats()[0] == torch.bfloat16  # what mmdet does
    cast_matching_heads(model)
    dtype, losses = formats()
    assert dtype == torch.float32
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_mask2former_matches_in_float32():
    model, data = build('mask2former_datpp-nano_1xb4_shapes')
    seen = []
    assign = model.panoptic_head.assigner.assign

    def record(pred_instances, **kwargs):
        seen.extend([pred_instances.scores.dtype, pred_instances.masks.dtype, torch.is_autocast_enabled('cpu')])
        return assign(pred_instances=pred_instances, **kwargs)

    model.panoptic_head.assigner.assign = record
    cast_matching_heads(model)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(data['inputs'], data['data_samples'])
    assert set(seen) == {torch.float32, False}
    assert all(loss.isfinite() for loss in losses.values())
