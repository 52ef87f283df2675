# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The interactive page in a browser: what it shows is what Python computes, and every control does what it says."""

import json
import re

import numpy as np
import pytest
import torch
from browser import launched, watched_pages

from dat_mm import DAT
from dat_mm.visualize import Box, Placement, record, show
from dat_mm.visualize.page import make_page
from dat_mm.visualize.page.pack import MOST_QUERIES, largest_error, pack, quantise, thin, unpacked_attention

pytestmark = pytest.mark.one_stack


def make_view(arch='dat-nano', size=(96, 160), placement=None, **options):
    torch.manual_seed(0)
    model = DAT(arch, img_size=64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'offset_net.proj' in name or 'position_bias' in name:
                parameter.copy_(torch.randn_like(parameter))
            elif 'proj_q' in name or 'proj_k' in name:
                parameter.mul_(3)
        images = torch.randn(1, 3, *size)
        with record(model) as recording:
            model(images)
    view = show(recording, images, title='<a & b>', **options)
    if placement is not None:
        view.placement = placement
    return view


@pytest.fixture(scope='module')
def browser():
    with launched() as chromium:
        yield chromium


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens a view's page from the disk."""
    with watched_pages(browser, 'body[data-ready="true"][data-drawn]') as open_page:
        yield lambda view, **options: open_page(view.save(tmp_path / 'page.html'), **options)


def wait_drawn(page, action):
    """Does something and waits until the page has drawn what follows from it."""
    before = page.evaluate('Number(document.body.dataset.drawn)')
    action()
    page.wait_for_function('before => Number(document.body.dataset.drawn) > before', arg=before)


def state(page):
    return page.evaluate(
        """() => {
        const { state, layers } = window.deformableAttention;
        return { layer: layers[state.layer].name, query: state.query, head: state.head, group: state.group,
          topk: state.topk, whose: state.whose, where: state.where, number: state.shown.query,
          chosen: [...state.shown.chosen], weights: [...state.shown.weights] };
        }"""
    )


def pixels(page):
    return page.evaluate("document.getElementById('picture').toDataURL()")


def click(page, view, x, y):
    """Clicks at a place of the picture."""
    frame = page.locator('#picture').bounding_box()
    width, height = view.placement.size
    page.mouse.click(frame['x'] + (x + 0.5) / width * frame['width'], frame['y'] + (y + 0.5) / height * frame['height'])


@pytest.mark.parametrize('arch', ['dat-nano', 'datpp-nano'])
@pytest.mark.parametrize('flip', ['', 'horizontal'])
def test_a_click_shows_the_keys_that_python_computes(open_page, arch, flip):
    # shown as if the picture had been flipped and stretched on its way into the model
    placement = Placement((160, 192), (1.0, 0.5), flip=flip)
    view = make_view(arch, placement=placement)
    view.picture = np.zeros((192, 160, 3), np.uint8)
    page = open_page(view)
    for name in view.recording:
        wait_drawn(page, lambda name=name: page.select_option('#layer', str(list(view.recording).index(name))))
        for x, y in ((20.3, 30.3), (150.3, 179.3)):  # not half way between two pixels of any map
            wait_drawn(page, lambda x=x, y=y: click(page, view, x, y))
            shown, layer = state(page), view.layer_at(name)
            assert shown['layer'] == name
            query = layer.map_grid.nearest(placement.to_input((x, y)))
            assert shown['number']['row'] * layer.map_size[1] + shown['number']['column'] == query
            exact = layer.attention(query).reshape(layer.groups, -1, layer.keys).mean(1).reshape(-1)
            np.testing.assert_allclose(shown['weights'], exact, atol=1e-3 * exact.max())
            np.testing.assert_allclose(exact[shown['chosen'][:9]], np.sort(exact)[::-1][:9], atol=1e-3 * exact.max())
            at = page.evaluate(
                '([i, name]) => { const { layers, places } = window.deformableAttention;'
                "return [...places(layers.find((l) => l.name === name), 'deformed').slice(2 * i, 2 * i + 2)] }",
                [shown['chosen'][0], name],
            )
            place = view.in_picture(layer.points_in_input).reshape(-1, 2)[shown['chosen'][0]]
            np.testing.assert_allclose(at, place, atol=0.01)


def test_every_control_does_what_it_says(open_page):
    view = make_view(boxes=[Box(20, 20, 90, 70, 'thing', 0.9)])
    page = open_page(view)
    layer = view.layer
    first = pixels(page)

    for box in ('every', 'arrows', 'bias', 'boxes'):  # each changes the picture, and changes it back
        wait_drawn(page, lambda box=box: page.locator(f'#{box}').click())
        assert pixels(page) != first, box
        wait_drawn(page, lambda box=box: page.locator(f'#{box}').click())
        assert pixels(page) == first, box

    wait_drawn(page, lambda: page.check('input[name="where"][value="reference"]'))
    assert state(page)['where'] == 'reference' and pixels(page) != first
    wait_drawn(page, lambda: page.check('input[name="where"][value="deformed"]'))

    wait_drawn(page, lambda: page.select_option('#head', '3'))
    shown = state(page)
    query = view.query_number()
    exact = np.zeros(layer.groups * layer.keys)
    start = layer.group_of(3) * layer.keys
    exact[start : start + layer.keys] = layer.attention(query)[3]
    np.testing.assert_allclose(shown['weights'], exact, atol=1e-3 * exact.max())
    wait_drawn(page, lambda: page.select_option('#group', str((layer.group_of(3) + 1) % layer.groups)))
    assert (state(page)['head'], state(page)['group']) == ('all', (layer.group_of(3) + 1) % layer.groups)
    assert {i // layer.keys for i in state(page)['chosen']} == {state(page)['group']}
    wait_drawn(page, lambda: page.select_option('#group', 'all'))

    wait_drawn(page, lambda: page.check('input[name="whose"][value="all"]'))
    received = layer.received.reshape(layer.groups, -1, layer.keys).mean(1).reshape(-1)
    np.testing.assert_allclose(state(page)['weights'], received, rtol=1e-4)
    assert page.locator('#summary').inner_text().startswith('All queries')
    wait_drawn(page, lambda: page.check('input[name="whose"][value="query"]'))

    wait_drawn(page, lambda: page.locator('#topk').fill('7'))
    assert len(state(page)['chosen']) == 7 and page.locator('#topk-value').inner_text() == '7'
    rows = page.locator('#table tr').all_inner_texts()
    assert len(rows) == 7

    wait_drawn(page, lambda: page.locator('#film button').nth(0).click())
    assert state(page)['layer'] == next(iter(view.recording))
    assert page.locator('#film button').nth(0).get_attribute('aria-pressed') == 'true'

    before = state(page)['query']
    page.locator('#picture').hover(position=dict(x=30, y=30))
    assert state(page)['query'] == before
    page.check('#follow')
    wait_drawn(page, lambda: page.locator('#picture').hover(position=dict(x=60, y=40)))
    assert state(page)['query'] != before
    wait_drawn(page, lambda: page.locator('#picture').click(position=dict(x=30, y=30)))
    assert not page.locator('#follow').is_checked()


def test_the_keyboard_does_all_of_it(open_page):
    view = make_view('datpp-nano')
    page = open_page(view)
    page.locator('#picture').focus()
    start = state(page)['number']
    for key, (row, column) in (
        ('ArrowRight', (0, 1)),
        ('ArrowUp', (-1, 1)),
        ('ArrowLeft', (-1, 0)),
        ('ArrowDown', (0, 0)),
    ):
        wait_drawn(page, lambda key=key: page.keyboard.press(key))
        now = state(page)['number']
        assert (now['row'] - start['row'], now['column'] - start['column']) == (row, column), key
    names = list(view.recording)
    at = names.index(state(page)['layer'])
    for key, change in ((']', 1), ('[', 0), ('[', -1), (']', 0)):
        wait_drawn(page, lambda key=key: page.keyboard.press(key))
        assert state(page)['layer'] == names[(at + change) % len(names)]
    expected = [('h', 'head', 0), ('H', 'head', 'all'), ('g', 'group', 0), ('G', 'group', 'all')]
    expected += [('r', 'where', 'reference'), ('q', 'whose', 'all'), ('-', 'topk', 50), ('+', 'topk', 60)]
    for key, name, value in expected:
        wait_drawn(page, lambda key=key: page.keyboard.press(key))
        assert state(page)[name] == value, key
    wait_drawn(page, lambda: page.keyboard.press('a'))
    assert page.locator('#arrows').is_checked()
    wait_drawn(page, lambda: page.keyboard.press('b'))
    assert page.locator('#bias').is_checked()


def test_a_screen_reader_is_told(open_page):
    view = make_view()
    page = open_page(view)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('select, input, button, [role="img"]')].filter((e) =>
        !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent.trim()))
        .map((e) => e.id)"""
    )
    assert nameless == []
    text = page.locator('#summary').inner_text()
    assert re.search(r'The query at x \d+, y \d+ in stage 3, block 2 \(mean of 8 heads', text)
    assert page.locator('#picture').get_attribute('aria-label') == f'Picture. {text}'
    assert page.locator('#summary').get_attribute('aria-live') == 'polite'
    assert page.title() == 'Deformable attention: <a & b>'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_it_fits_on_a_phone(open_page, scheme):
    phone = dict(viewport=dict(width=390, height=844), device_scale_factor=2, has_touch=True, is_mobile=True)
    page = open_page(make_view(), color_scheme=scheme, **phone)
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    back = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert (back == 'rgb(255, 255, 255)') == (scheme == 'light')
    before = state(page)['number']
    wait_drawn(page, lambda: page.locator('#picture').tap(position=dict(x=40, y=40)))
    assert state(page)['number'] != before


def test_a_layer_with_another_bias_has_its_rows(open_page):
    torch.manual_seed(0)
    model = DAT('datpp-nano', img_size=64, position_bias='log').eval()
    images = torch.randn(1, 3, 64, 96)
    with record(model) as recording, torch.no_grad():
        model(images)
    view = show(recording, images)
    page = open_page(view)
    exact = view.layer.attention(view.query_number())
    exact = exact.reshape(view.layer.groups, -1, view.layer.keys).mean(1).reshape(-1)
    np.testing.assert_allclose(state(page)['weights'], exact, atol=0.01 * exact.max())
    assert page.locator('#bias').is_disabled()


def test_thinned_queries_cover_the_map():
    every, kept = thin((50, 80), MOST_QUERIES)
    assert every == 1 and kept.tolist() == list(range(4000))
    every, kept = thin((200, 320), MOST_QUERIES)
    assert every == 4 and len(kept) == 50 * 80 <= MOST_QUERIES
    assert kept[0] == 2 * 320 + 2
    every, kept = thin((5, 3), 4)
    assert len(kept) <= 4 and kept.max() < 15


@pytest.mark.parametrize('bits', [16, 8, 6, 4])
def test_quantised_numbers_are_within_half_a_step(bits):
    x = np.random.default_rng(0).standard_normal((3, 20, 4))
    packed, step = quantise(x, bits)
    assert np.abs(packed).max() <= 2 ** (bits - 1) - 1
    assert (np.abs(packed * step[:, None, None] - x) <= step[:, None, None] / 2 + 1e-6).all()


def test_a_small_budget_takes_fewer_bits_and_the_page_says_so():
    view = make_view()
    text = make_page(view, budget=1)
    header = json.loads(re.search(r'id="header">(.*?)</script>', text, re.DOTALL)[1])
    assert header['bits'] == 4
    assert len(text) < len(make_page(view))
    assert all(0 < layer['error'] < 0.5 for layer in header['layers'])


@pytest.mark.parametrize('bits, limit', [(16, 1e-4), (8, 0.02), (4, 0.5)])
def test_packed_layers_are_as_exact_as_the_page_says(bits, limit):
    for layer in make_view().layers:
        _, arrays = pack(layer, bits)
        told = largest_error(layer, arrays, layer.queries)
        found = [np.abs(unpacked_attention(layer, arrays, i) - layer.attention(i)) for i in range(layer.queries)]
        assert told == pytest.approx(np.max(found))
        assert 0 < told < limit
