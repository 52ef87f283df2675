# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from dat_mm import DAT
from dat_mm.convert import convert, rename

pytestmark = pytest.mark.one_stack

NETWORKS = [
    ('v1_tiny_224', 'dat-tiny', (3,)),
    ('v2_tiny_224', 'datpp-tiny', (3,)),
    ('det_tiny_224x320', 'datpp-tiny', (0, 1, 2, 3)),
]


@pytest.mark.parametrize(('name', 'arch', 'out_indices'), NETWORKS)
def test_keys_and_shapes_are_the_models(golden, name, arch, out_indices):
    with torch.device('meta'):
        model = DAT(arch, out_indices=out_indices)
    official = {key: torch.empty(shape, device='meta') for key, shape in golden(name).shapes.items()}
    ours = {key: value.shape for key, value in convert(official).items()}
    expected = {f'backbone.{key}': value.shape for key, value in model.state_dict().items()}
    if 'cls_head.weight' in official:
        expected |= {'head.fc.weight': (1000, model.arch.stages[-1].dim), 'head.fc.bias': (1000,)}
    assert ours == expected


def dense(golden):
    return {f'backbone.{key}': value for key, value in golden('det_tiny_224x320').state_dict().items()}


@pytest.mark.parametrize(
    'heads',
    [
        ['neck.lateral_convs.0.conv.weight', 'rpn_head.rpn_conv.weight', 'roi_head.bbox_head.0.fc_cls.weight'],
        ['neck.fpn_convs.0.conv.bias', 'bbox_head.cls_convs.0.conv.weight'],
        ['decode_head.conv_seg.weight', 'auxiliary_head.convs.0.bn.running_mean'],
    ],
)
def test_heads_of_dense_models_keep_their_keys(golden, heads):
    official = dense(golden) | {key: torch.ones(3, 2, 1, 1) for key in heads}
    converted = convert(official)
    assert len(converted) == len(official)
    for key in heads:
        assert converted[key] is official[key]


def test_nothing_but_views(golden):
    """Conversion only renames and reshapes, and copies nothing."""
    official = golden('v2_tiny_224').state_dict()
    converted = convert(official)
    assert sum(v.numel() for v in converted.values()) == sum(v.numel() for v in official.values())
    ours = {value.data_ptr() for value in converted.values()}
    assert ours == {value.data_ptr() for value in official.values()}


def test_gradients_map(golden):
    """Conversion is linear, so it maps gradients as it maps weights: twice the weights become twice as much."""
    official = golden('v1_tiny_224').state_dict()
    doubled = convert({key: 2 * value for key, value in official.items()})
    for key, value in convert(official).items():
        assert torch.equal(doubled[key], 2 * value)


def test_buffers_that_the_model_computes_are_left_out(golden):
    official = golden('v1_tiny_224').state_dict()
    assert any(key.endswith('attn_mask') for key in official)
    assert not any(key.endswith(('attn_mask', 'relative_position_index')) for key in convert(official))


def test_unknown_keys_are_listed(golden):
    official = golden('v2_tiny_224').state_dict()
    extra = {'stages.0.attns.0.mystery': torch.ones(1), 'layer_scale': torch.ones(1)}
    with pytest.raises(
        ValueError, match=r'2 keys are of no official checkpoint: stages.0.attns.0.mystery, layer_scale'
    ):
        convert(official | extra)
    with pytest.raises(ValueError, match=r'1 keys are of no official checkpoint: tracker.weight'):
        convert(dense(golden) | {'tracker.weight': torch.ones(1)})


def test_other_files_are_refused():
    with pytest.raises(
        ValueError, match=r"not an official DAT checkpoint: none of its 1 keys is 'patch_proj.0.weight' \(conv1"
    ):
        convert({'conv1.weight': torch.ones(1)})


@pytest.mark.parametrize(
    ('official', 'ours'),
    [
        ('stages.1.layer_norms.5.norm.weight', 'stages.1.blocks.2.norm2.weight'),
        ('stages.1.ln_cnvnxt.3.norm.bias', 'stages.1.blocks.3.norm2.bias'),
        ('stages.1.attns.3.weight', 'stages.1.blocks.3.conv.weight'),
        ('stages.0.attns.1.proj_ds.0.weight', 'stages.0.blocks.1.attn.reduce.weight'),
        ('stages.0.attns.1.proj_ds.1.norm.weight', 'stages.0.blocks.1.attn.reduce_norm.weight'),
        ('stages.0.attns.1.kv.weight', 'stages.0.blocks.1.attn.proj_kv.weight'),
        ('stages.0.attns.1.q.bias', 'stages.0.blocks.1.attn.proj_q.bias'),
        ('stages.3.attns.1.rpe_table.weight', 'stages.3.blocks.1.attn.position_bias.conv.weight'),
        ('stages.3.attns.1.rpe_table.0.weight', 'stages.3.blocks.1.attn.position_bias.mlp.0.weight'),
    ],
)
def test_keys_of_the_ablations(official, ours):
    assert rename(official) == ours


def test_keys_of_every_kind_exist():
    """For kinds that the golden networks lack, the table gives keys that the model has."""
    with torch.device('meta'):
        model = DAT('dat-nano', kinds=['PP', 'XX', 'LD', 'LD'], reduction=[8, 1, 1, 1])
    names = set(model.state_dict())
    for key in (
        'attn.reduce.weight',
        'attn.reduce_norm.bias',
        'attn.proj_kv.weight',
        'attn.proj_q.bias',
        'attn.proj_out.bias',
    ):
        assert f'stages.0.blocks.1.{key}' in names
    assert {'stages.1.blocks.1.conv.weight', 'stages.1.blocks.1.norm2.weight'} <= names
