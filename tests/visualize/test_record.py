# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Recordings: the model's own attention, and a model that is as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from dat_mm import DAT, DeformableAttention, ops, set_backend
from dat_mm.errors import UserError
from dat_mm.ops.backends import DEFORMABLE
from dat_mm.visualize import layer as layer_module
from dat_mm.visualize import record

pytestmark = pytest.mark.one_stack

SITES = {
    'dat': dict(convention='dat', range_factor=2, groups=2),
    'datpp': dict(groups=2, key_stride=2),
    'one group': dict(convention='dat', key_stride=3, offset_kernel=5),
    'depthwise': dict(position_bias='depthwise', key_stride=2),
    'fixed': dict(position_bias='fixed', key_stride=2),
    'log': dict(position_bias='log', groups=4),
    'none': dict(position_bias='none', groups=4, key_stride=2),
    'pooled': dict(offsets=False, position_bias='none', key_stride=2),
    'on the grid': dict(offsets=False, convention='dat'),
}


def lone(**options):
    torch.manual_seed(1)
    attention = DeformableAttention(dim=32, heads=4, map_size=(6, 8), **options).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    return attention


def softmax_of(attention, x, backend='reference'):
    """The attention (M, Q, K) that the op itself applies: values that are rows of the identity come out as weights."""
    with torch.no_grad():
        q = attention.proj_q(x)
        keys, points = attention.sample_keys(x, q)
        k = attention.proj_k(keys).flatten(1, 2).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        points = points.contiguous().flatten(2, 3)
        bias = attention.position_bias(q, points, keys.shape[1:3])
        K = k.shape[2]
        rows = ops.deformable_attention(
            q.unflatten(-1, (attention.heads, -1)).permute(0, 3, 1, 2, 4),
            k,
            torch.eye(K).expand(1, attention.heads, K, K),
            points,
            bias.table,
            bias=bias.logits,
            convention=attention.convention,
            backend=backend,
        )
    return rows[0].flatten(1, 2).numpy()


@pytest.mark.parametrize('site', SITES)
def test_attention_is_that_of_the_op(site, monkeypatch):
    monkeypatch.setattr(layer_module, 'CHUNK', 700)  # so that the sums over all queries are made in several parts
    attention = lone(**SITES[site])
    x = torch.randn(1, 5, 9, 32)  # another size than that of the training
    with record(attention) as recording:
        attention(x)
    layer, expected = recording.layer(), softmax_of(attention, x)
    found = layer.attention(np.arange(layer.queries))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(layer.received, expected.mean(1), atol=2e-6)
    unit = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    cosines = unit @ unit.transpose(0, 2, 1)
    off_diagonal = ~np.eye(layer.queries, dtype=bool)
    np.testing.assert_allclose(layer.similarity, cosines[:, off_diagonal].mean(1), atol=1e-5)
    np.testing.assert_allclose(layer.attention(7), found[:, 7], atol=2e-6)


def test_points_are_those_of_the_module():
    attention = lone(groups=2, key_stride=2)
    x = torch.randn(2, 6, 8, 32)
    with record(attention) as recording:
        attention(x)
    expected = attention.points(x).detach().flatten(2, 3).numpy()
    for image in range(2):
        np.testing.assert_allclose(recording.layer(image=image).points, expected[image], atol=1e-6)


@pytest.mark.parametrize('backend', list(DEFORMABLE))
def test_numbers_are_the_same_with_any_backend(backend):
    attention, x = lone(groups=2), torch.randn(1, 6, 8, 32)
    found = {}
    for name in ('reference', backend):
        try:
            with set_backend(attention, name), record(attention) as recording:
                attention(x)
        except RuntimeError as error:
            pytest.skip(str(error))
        found[name] = recording.layer().attention(np.arange(48))
    np.testing.assert_allclose(found[backend], found['reference'], atol=1e-5)


@pytest.mark.parametrize('arch', ['dat-nano', 'datpp-nano'])
@pytest.mark.parametrize('grad', [False, True])
def test_outputs_stay_the_same_to_the_bit_and_no_hook_is_left(arch, grad):
    model = DAT(arch, out_indices=(0, 1, 2, 3)).eval()
    x = torch.randn(2, 3, 70, 90)
    with torch.set_grad_enabled(grad):
        before = model(x)
        with record(model) as recording:
            during = model(x)
        after = model(x)
    for one, two, three in zip(before, during, after, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert recording.input_size == (70, 90)
    deformable = [name for name, module in model.named_modules() if isinstance(module, DeformableAttention)]
    assert list(recording) == deformable
    assert not any(recording.layer(name).q.requires_grad for name in recording)


def test_hooks_go_when_a_forward_fails():
    model = DAT('dat-nano').eval()
    with pytest.raises(ValueError), record(model):
        model(torch.randn(1, 4, 64, 64))
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_are_found_by_the_end_of_their_name():
    model = nn.ModuleDict(dict(backbone=DAT('datpp-nano').eval()))
    with record(model) as recording, torch.no_grad():
        model['backbone'](torch.randn(1, 3, 64, 64))
    assert recording.find() == 'backbone.stages.2.blocks.1.attn'  # the last of the third stage
    assert recording.find('0.1') == 'backbone.stages.0.blocks.1.attn'
    assert recording.find('stages.3.blocks.0.attn') == recording.find('3.0')
    with pytest.raises(
        UserError, match=r"layer '9.9' is no deformable layer of ModuleDict: there are backbone.stages.0"
    ):
        recording.find('9.9')
    with pytest.raises(UserError, match="layer 'attn' is several layers"):
        recording.find('attn')
    with pytest.raises(UserError, match='image 3 is not in the batch of 1'):
        recording.layer(image=3)


def test_what_cannot_be_recorded_is_one_line():
    with pytest.raises(UserError, match='Linear has no deformable attention to look at'), record(nn.Linear(2, 2)):
        pass
    with record(lone()) as recording:
        pass
    with pytest.raises(UserError, match='nothing is recorded: call the DeformableAttention inside'):
        recording.layer()


def test_the_last_forward_counts():
    attention = lone()
    with record(attention) as recording:
        attention(torch.randn(1, 6, 8, 32))
        attention(torch.randn(1, 4, 5, 32))
    assert recording.layer().map_size == (4, 5)


@pytest.mark.parametrize('convention', ['dat', 'datpp'])
def test_the_bias_map_holds_the_bias_of_keys_on_the_grid(convention):
    attention = lone(convention=convention, offsets=convention == 'datpp', groups=2)
    x = torch.randn(1, 6, 8, 32)
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    with record(attention) as recording:
        attention(x)
    layer = recording.layer()
    whole = layer.bias_map(11)
    assert whole.shape == (4, 6, 8)
    layer._points = corners.reshape(1, 2, 2, 2).expand(2, -1, -1, -1)
    layer.key_map_size = (2, 2)
    np.testing.assert_allclose(layer.bias(11), whole[:, [0, 0, -1, -1], [0, -1, 0, -1]], atol=1e-6)


def test_half_precision_is_recorded():
    attention = lone(groups=2).bfloat16()
    with record(attention) as recording:
        attention(torch.randn(1, 6, 8, 32, dtype=torch.bfloat16))
    rows = recording.layer().attention([0, 47])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-5)
