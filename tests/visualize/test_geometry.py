# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Points are shown where they are: the gradient of a sampled feature says where that is."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dat_mm import DAT, StageSpec
from dat_mm.errors import UserError
from dat_mm.ops import sample_features
from dat_mm.visualize import Placement, record
from dat_mm.visualize.geometry import MapGrid, strides

pytestmark = pytest.mark.one_stack

GENERATIONS = ('dat', 'datp', 'datpp')


def even_model(generation):
    """A model whose features depend on the same square of pixels everywhere, with deformable attention in stage 2."""
    stages = [
        StageSpec(8, 2, 'X', window_size=1),
        StageSpec(16, 4, 'D', groups=2, key_stride=2, offset_kernel=3),
    ]
    model = DAT(stages, generation=generation, img_size=96, out_indices=(1,)).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Conv2d) and 'offset_net' not in name:
                if module.groups == 1:  # a stem or a downsampling: all pixels of the kernel count the same
                    module.weight.copy_(torch.randn(*module.weight.shape[:2], 1, 1).expand_as(module.weight))
                else:
                    module.weight.zero_()
    return model


def prepared(picture, scale, flip, pad):
    """A picture (3, H, W) resized, flipped and padded as a pipeline does it, and the placement that says so."""
    height, width = picture.shape[-2:]
    size = round(height * scale[1]), round(width * scale[0])
    x = F.interpolate(picture[None], size=size, mode='bilinear', align_corners=False)
    axes = {'': [], 'horizontal': [3], 'vertical': [2], 'diagonal': [2, 3]}[flip]
    x = F.pad(x.flip(axes), (0, pad, 0, pad))
    meta = dict(
        ori_shape=(height, width), img_shape=size, scale_factor=(size[1] / width, size[0] / height),
        flip=bool(flip), flip_direction=flip or None,
    )  # fmt: skip
    return x, Placement.from_meta(meta)


@pytest.mark.parametrize('generation', GENERATIONS)
@pytest.mark.parametrize(
    'scale, flip, pad',
    [((1, 1), '', 0), ((1.25, 1.5), '', 13), ((0.75, 0.8), 'horizontal', 8), ((1, 1), 'diagonal', 24)],
    ids=['as it is', 'resized and padded', 'flipped', 'flipped both ways'],
)
def test_points_are_where_the_gradient_of_a_sample_lands(generation, scale, flip, pad):
    model = even_model(generation)
    attention = model.stages[1].blocks[0].attn
    picture = torch.full((3, 128, 160), 0.7, requires_grad=True)
    x, placement = prepared(picture, scale, flip, pad)

    def by_hand(module, args, output):
        return torch.linspace(-0.11, 0.13, output.numel()).reshape(output.shape)

    inputs = []
    hooks = [
        attention.offset_net.register_forward_hook(by_hand),
        attention.register_forward_pre_hook(lambda module, args: inputs.append(args[0])),
    ]
    with record(model) as recording:
        model(x)
    for hook in hooks:
        hook.remove()
    layer = recording.layer()
    places = placement.to_picture(layer.points_in_input)  # (G, K, 2)

    points = torch.from_numpy(layer.points.copy()).unflatten(1, layer.key_map_size)[None].float()
    sampled = sample_features(inputs[0], points, backend='reference').unflatten(-1, (2, -1))  # (1, Hk, Wk, G, c)
    mixed = (sampled * torch.randn(sampled.shape[-1])).sum(-1).flatten(1, 2)[0].T  # (G, K)
    y, x = np.mgrid[:128, :160]
    margin = 24  # nearer to the border, the padding of the convolutions tells
    inside = ((places > margin) & (places < np.array([160, 128]) - 1 - margin)).all(-1)
    checked = np.argwhere(inside)[::5]
    assert len(checked) > 3
    for group, key in checked:
        (gradient,) = torch.autograd.grad(mixed[group, key], picture, retain_graph=True)
        weight = gradient.abs().sum(0).numpy().astype(float)
        centre = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
        assert np.abs(centre - places[group, key]).max() < 0.05, (group, key)


@pytest.mark.parametrize('generation', GENERATIONS)
def test_strides_follow_the_convolutions(generation):
    found = strides(DAT('dat-nano' if generation == 'dat' else 'datpp-nano', generation=generation))
    assert [step for _, step in found] == [4, 8, 16, 32]
    patches = generation != 'datpp'
    assert [first for first, _ in found] == ([1.5, 3.5, 7.5, 15.5] if patches else [0, 0, 0, 0])


def test_queries_are_pixels_of_the_map():
    grid = MapGrid(5, 7, (1.5, 1.5), (4.0, 4.0))
    assert grid.nearest(grid.centres()[3, 2]) == 3 * 7 + 2
    assert grid.nearest((-100, 1000)) == 4 * 7


@pytest.mark.parametrize('flip', ['', 'horizontal', 'vertical', 'diagonal'])
def test_placements_go_both_ways(flip):
    placement = Placement((100, 80), (1.5, 2.0), (10.0, 20.0), (64, 64), flip)
    places = np.random.default_rng(0).uniform(0, 80, (9, 2))
    np.testing.assert_allclose(placement.to_picture(placement.to_input(places)), places)


def test_a_centre_crop_is_found_from_the_metainfo():
    meta = dict(ori_shape=(200, 300), img_shape=(224, 224), scale_factor=(1.28, 1.28))
    placement = Placement.from_meta(meta)
    assert placement.corner == (80, 16)
    np.testing.assert_allclose(placement.to_input((149.5, 99.5)), (111.5, 111.5))


def test_a_query_outside_is_one_line():
    placement = Placement((100, 80), (1.0, 1.0), (20.0, 0.0), (60, 80))
    with pytest.raises(UserError, match=r'query 100,3 is outside the picture: X is 0 to 99, Y is 0 to 79'):
        placement.check_query((100, 3))
    with pytest.raises(UserError, match=r'query 5,3 is outside what the model saw of the picture: X is 20 to 79'):
        placement.check_query((5, 3))
    placement.check_query((20, 79))
