# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Figures show what the numbers say: content, not bytes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dat_mm import DeformableAttention
from dat_mm.errors import UserError
from dat_mm.visualize import Box, record, show
from dat_mm.visualize.decoder import DecoderLayer
from dat_mm.visualize.fields import receptive_fields, window
from dat_mm.visualize.figures import FIGURES, as_pixels, draw
from dat_mm.visualize.statistics import offset_statistics

pytestmark = pytest.mark.one_stack

STORED = Path(__file__).parents[1] / 'data' / 'figures.npz'


def make_view():
    torch.manual_seed(0)
    attention = DeformableAttention(dim=32, heads=4, map_size=(8, 12), groups=2, range_factor=3).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
        with record(attention) as recording:
            attention(torch.randn(1, 8, 12, 32))
    torch.manual_seed(0)
    weights = torch.rand(1, 3, 2, 2, 4).flatten(3).softmax(-1).unflatten(-1, (2, 4))
    recording.decoder['layer'] = DecoderLayer(
        torch.rand(1, 3, 2, 2, 4, 2), weights, torch.tensor([[[0.1, 0.1], [0.5, 0.3], [0.9, 0.9]]])
    )
    return show(
        recording, np.zeros((80, 120, 3), np.uint8), query=(64, 23), topk=7, boxes=[Box(10, 10, 60, 60, 'a', 0.5)]
    )


@pytest.fixture
def view():
    return make_view()


def drawn_points(axis):
    """The places of all scattered points of a panel, and their areas."""
    found = [(collection.get_offsets(), collection.get_sizes()) for collection in axis.collections]
    found = [(np.asarray(places), sizes) for places, sizes in found if len(sizes) and len(places) > 1]
    return found


def test_the_overview_has_the_points_the_keys_and_the_query(view):
    points, attention, keys = draw(view, 'overview').axes
    layer = view.layer
    expected = view.in_picture(layer.points_in_input)
    groups = [places for places, _ in drawn_points(points)][-2:]  # the grid comes first
    for group in range(2):
        np.testing.assert_allclose(groups[group], expected[group])
    query = view.query_number()
    assert divmod(query, 12) == (2, 6)
    for axis, weights in ((attention, layer.attention(query)), (keys, layer.received)):
        ((places, sizes),) = drawn_points(axis)
        strongest = layer.strongest(weights, 7)
        np.testing.assert_allclose(places, [expected[group, key] for group, key, _ in strongest])
        assert (np.diff(sizes) <= 0).all()
    (star,) = [line for line in attention.lines if line.get_marker() == '*']
    np.testing.assert_allclose(star.get_xydata()[0], (6.5 * 10 - 0.5, 2.5 * 10 - 0.5))
    assert [text.get_text().strip() for text in points.texts] == ['a 0.50']
    inside = layer.attention(query).reshape(2, 2, 96).mean(1)[Box(10, 10, 60, 60).holds(expected)].sum() / 2
    assert attention.texts[0].get_text().strip() == f'a 0.50 · {inside:.0%}'


def test_heads_show_their_own_keys(view):
    axes = draw(view, 'heads').axes
    rows = view.layer.attention(view.query_number())
    for head, axis in enumerate(axes):
        ((places, _),) = drawn_points(axis)
        group = head // 2
        expected = view.in_picture(view.layer.points_in_input)[group][np.argsort(rows[head])[::-1][:7]]
        np.testing.assert_allclose(places, expected)


def test_receptive_fields_follow_their_rules(view):
    full, swin, dcn, dat = receptive_fields(view.layer, view.query_number())
    assert [len(field.places) for field in (full, swin, dcn, dat)] == [96, 49, 9, 192]
    for field in (full, swin, dcn, dat):
        assert field.weights.sum() == pytest.approx(1, abs=1e-5)
    assert dcn.places.mean(axis=0).tolist() == [6, 2]  # around the query
    assert swin.places.min(axis=0).tolist() == [0, 0] and swin.places.max(axis=0).tolist() == [6, 6]
    assert window(12, 9).tolist() == [7, 8, 9, 10, 11]  # the last window is cut off by the map


def test_the_bias_is_drawn_where_it_is(view):
    axes = draw(view, 'bias').axes
    expected = view.layer.bias_map(view.query_number())
    for head in range(4):
        _, shown = axes[head].images  # the picture, and the bias over it
        np.testing.assert_allclose(shown.get_array(), expected[head])
        np.testing.assert_allclose(shown.get_extent(), (-0.5, 119.5, 79.5, -0.5))


def test_the_decoder_shows_the_points_of_the_nearest_query(view):
    _, axis = draw(view, 'decoder').axes
    layer = view.recording.decoder['layer']
    assert layer.nearest(np.array([0.55, 0.35])) == 1
    points, weights, levels = layer.sampled(1)  # the query, (64, 23) of 120 x 80, is nearest to (0.5, 0.3)
    assert weights.sum() == pytest.approx(1) and set(levels) == {0, 1}
    expected = view.in_picture(points * [12, 8] - 0.5)
    for level, (places, sizes) in enumerate(drawn_points(axis)):
        np.testing.assert_allclose(places, expected[levels == level])
        assert np.argmax(sizes) == np.argmax(weights[levels == level])


def small(pixels, size=(48, 64)):
    """A picture as means over a grid of cells, which says what is where and not how each letter is drawn."""
    rows, columns = (np.linspace(0, n, count + 1).astype(int) for n, count in zip(pixels.shape, size, strict=False))
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(float), rows[:-1], axis=0), columns[:-1], axis=1)
    return sums / (np.diff(rows)[:, None] * np.diff(columns))[..., None]


@pytest.mark.parametrize('kind', FIGURES)
def test_figures_look_as_they_did(view, kind):
    """After a change that is wanted: python tests/visualize/test_figures.py writes the stored ones again."""
    stored = np.load(STORED)[kind].astype(float)
    found = small(as_pixels(draw(view, kind)))
    difference = np.abs(found - stored).mean()
    assert difference < 0.3 * np.abs(found - stored[:, ::-1]).mean()  # its mirror image has the same colours
    assert difference < 3


def test_offset_statistics_are_of_the_offsets(view):
    for entry, offsets in zip(offset_statistics(view.layer), view.layer.offsets_in_input, strict=True):
        lengths = np.linalg.norm(offsets, axis=-1)
        assert entry['mean'] == pytest.approx(lengths.mean()) and entry['max'] == pytest.approx(lengths.max())
        assert entry['cells'] == pytest.approx(lengths.mean())  # one key a pixel
        assert 0 <= entry['at_border'] < 1


def test_an_unknown_kind_or_suffix_is_one_line(view, tmp_path):
    with pytest.raises(UserError, match="figure 'pie' is not one of overview, points"):
        view.figure('pie')
    with pytest.raises(UserError, match=r'a figure is one of .png, .pdf, .svg, and a page is .html'):
        view.save(tmp_path / 'a.gif')


@pytest.mark.parametrize(
    ('picture', 'pixel'),
    [
        (np.full((4, 6, 3), 7, np.uint8), 7),
        (torch.full((1, 3, 4, 6), 7, dtype=torch.uint8), 7),
        (torch.linspace(-2, 2, 24).reshape(1, 4, 6).expand(3, -1, -1), 0),
        (np.linspace(0, 1, 24).reshape(4, 6), 0),
        (torch.zeros(3, 4, 6, dtype=torch.bfloat16), 0),
    ],
)
def test_pictures_of_any_kind_are_shown(view, picture, pixel):
    shown = show(view.recording, picture).picture
    assert shown.shape == (4, 6, 3) and shown.dtype == np.uint8 and shown[0, 0].tolist() == [pixel] * 3


def test_what_is_no_picture_is_one_line(view, tmp_path):
    with pytest.raises(UserError, match=r'a picture of shape \(4, 5, 6\)'):
        show(view.recording, np.zeros((2, 4, 5, 6)), image=0)
    (tmp_path / 'a.png').write_text('no')
    with pytest.raises(UserError, match='is no picture that can be read'):
        show(view.recording, tmp_path / 'a.png')
    with pytest.raises(UserError, match='no such picture'):
        show(view.recording, str(tmp_path / 'b.png'))


if __name__ == '__main__':
    np.savez_compressed(
        STORED, **{kind: small(as_pixels(draw(make_view(), kind))).round().astype(np.uint8) for kind in FIGURES}
    )
