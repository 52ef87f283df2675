# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The live page in a browser: it gives the numbers of PyTorch, draws them, fetches nothing and says what is wrong."""

import base64
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import launched, watched_pages

from dat_mm.deploy.page import build, runtime, write_page
from dat_mm.deploy.page.build import palette_of
from dat_mm.deploy.page.resizing import IMAGENET, resizing_of
from dat_mm.errors import UserError

pytestmark = pytest.mark.one_stack

ROOT = Path(__file__).parents[2]
CAMERA = ('--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream')  # Chromium shows moving shapes
CONFIG = """
_base_ = '{root}/configs/shapes/dat-nano_1xb32_shapes.py'
stages = [dict(dim=16, heads=2, kinds='L', window_size=4), dict(dim=32, heads=4, kinds='D', groups=2, key_stride=2)]
model = dict(backbone=dict(arch=stages, generation='dat', out_indices=(1,)), head=dict(in_channels=32))
make = dict(num_train=4, num_val=2)
test_dataloader = dict(dataset=dict(data_root='{data}', make=make))
"""


@pytest.fixture(scope='module')
def onnxruntime_web():
    pytest.importorskip('onnxruntime')
    try:
        return runtime.find_runtime()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope='module')
def browser():
    with launched(*CAMERA) as chromium:
        yield chromium


@pytest.fixture
def open_page(browser):
    with watched_pages(browser, 'body[data-ready="true"]') as open_page:
        yield open_page


def wait_drawn(page, action):
    """Does something and waits until the page has drawn what follows from it."""
    before = page.evaluate('window.live.state.drawn')
    action()
    page.wait_for_function('before => window.live.state.drawn > before', arg=before)


def output(page, name) -> np.ndarray:
    """An output of the model as it came to the page."""
    sizes, values = page.evaluate(
        """name => { const { sizes, data } = window.live.state.shown.outputs[name];
        return [sizes, [...data].map(Number)] }""",
        name,
    )
    return np.array(values).reshape(sizes)


def pixels(page) -> np.ndarray:
    """What the model got, (1, H, W, 3)."""
    values, size = page.evaluate(
        '() => { const { pixels, placement } = window.live.state.shown; return [[...pixels], placement.input] }'
    )
    return np.array(values, np.uint8).reshape(1, size[1], size[0], 4)[..., :3]


def drop(page, size, tmp_path, colour=(200, 30, 60)):
    """Opens a picture of (width, height) in one colour."""
    from PIL import Image

    file = tmp_path / 'picture.png'
    Image.new('RGB', size, colour).save(file)
    wait_drawn(page, lambda: page.set_input_files('#file', file))


# ---- An exported model


@pytest.fixture(scope='module')
def exported(tmp_path_factory, onnxruntime_web):
    """A small classifier of Shapes with random weights, exported with its page: its source, files and layer."""
    pytest.importorskip('mmpretrain')
    from mmengine.registry import MODELS

    from dat_mm.commands.export import export, open_source
    from dat_mm.commands.infer import load_nothing_else
    from dat_mm.commands.prepare import prepare

    folder = tmp_path_factory.mktemp('exported')
    config = folder / 'small.py'
    config.write_text(CONFIG.format(root=ROOT, data=folder / 'shapes'))
    torch.manual_seed(0)
    cfg = prepare(config, edit=load_nothing_else)
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.model.data_preprocessor))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'offset_net.proj' in name or 'position_bias' in name:
                parameter.copy_(torch.randn_like(parameter))
            elif 'proj_q' in name or 'proj_k' in name or 'head' in name:
                parameter.mul_(5)
    torch.save({'state_dict': model.state_dict()}, folder / 'weights.pth')
    differences = export(
        config, folder / 'weights.pth', folder / 'small.onnx', page=folder / 'small.html', shape=(48, 48), check=True
    )
    assert max(differences.values()) < 1e-4
    return open_source(config, folder / 'weights.pth'), folder / 'small.onnx', folder / 'small.html'


@pytest.mark.slow
def test_the_page_gives_the_numbers_of_pytorch(exported, open_page):
    from dat_mm.deploy.networks import wrap
    from dat_mm.visualize import record

    source, _, file = exported
    network = wrap(source.model, source.preprocessing)
    page = open_page(file)
    examples = source.pictures()
    for n in range(2):
        wait_drawn(page, lambda n=n: page.locator('#examples button').nth(n).click())
        given = pixels(page)
        np.testing.assert_array_equal(given, next(examples))
        with torch.no_grad(), record(network.model) as recording:
            scores = network(torch.from_numpy(given))['scores'].numpy()
        np.testing.assert_allclose(output(page, 'scores'), scores, atol=1e-5)
        best = page.locator('#bars li').first.inner_text().split('\n')
        assert best[0] == source.classes[scores[0].argmax()]

        layer = recording.layer()
        frame = page.locator('#picture').bounding_box()
        for share in ((0.2, 0.3), (0.8, 0.6)):
            x, y = frame['x'] + share[0] * frame['width'], frame['y'] + share[1] * frame['height']
            wait_drawn(page, lambda x=x, y=y: page.mouse.move(x, y))
            query = layer.map_grid.nearest(np.array(share) * 48 - 0.5)
            told = page.evaluate('window.live.state.shown.query')
            assert told['row'] * layer.map_size[1] + told['column'] == query
            weights = page.evaluate('[...window.live.state.shown.weights]')
            exact = layer.by_group(layer.attention(query)).reshape(-1)
            np.testing.assert_allclose(weights, exact, atol=1e-4 * exact.max())
        at = page.evaluate('[...window.live.state.layer.data.points]')
        np.testing.assert_allclose(at, layer.points_in_input.reshape(-1), atol=1e-3)


@pytest.mark.slow
def test_the_exported_file_has_nothing_of_the_page(exported):
    import onnxruntime

    _, file, page = exported
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    assert [value.name for value in session.get_outputs()] == ['scores']
    assert 'dat_mm.task' in session.get_modelmeta().custom_metadata_map
    assert page.stat().st_size < 25e6


@pytest.mark.slow
def test_pictures_the_camera_and_the_keyboard(exported, open_page, tmp_path):
    page = open_page(exported[2])
    drop(page, (96, 30), tmp_path)
    np.testing.assert_array_equal(pixels(page), np.full((1, 48, 48, 3), (200, 30, 60)))
    assert 'ms for 48×48 pixels' in page.locator('#status').inner_text()
    assert 'stage 2, block 1' in page.locator('#summary').inner_text()

    page.locator('#picture').focus()
    start = page.evaluate('window.live.state.shown.query')
    for key, (row, column) in (('ArrowRight', (0, 1)), ('ArrowUp', (-1, 1)), ('ArrowLeft', (-1, 0))):
        wait_drawn(page, lambda key=key: page.keyboard.press(key))
        now = page.evaluate('window.live.state.shown.query')
        assert (now['row'] - start['row'], now['column'] - start['column']) == (row, column)
    before = page.locator('#picture').evaluate('canvas => canvas.toDataURL()')
    for control in ('attention', 'every'):
        wait_drawn(page, lambda control=control: page.locator(f'#{control}').click())
        assert page.locator('#picture').evaluate('canvas => canvas.toDataURL()') != before
        wait_drawn(page, lambda control=control: page.locator(f'#{control}').click())
        assert page.locator('#picture').evaluate('canvas => canvas.toDataURL()') == before
    wait_drawn(page, lambda: page.locator('#topk').fill('3'))
    assert len(page.evaluate('window.live.state.shown.chosen')) == 3

    for state in ('true', 'false', 'true'):
        wait_drawn(page, lambda: page.locator('#camera').click())
        assert page.locator('#camera').get_attribute('aria-pressed') == state
    page.wait_for_function('() => document.getElementById("status").textContent.includes("pictures a second")')
    assert page.evaluate('window.live.state.shown.picture.width') > 96
    page.locator('#camera').click()
    assert 'pictures a second' not in page.locator('#status').inner_text()

    text = tmp_path / 'picture.txt'
    text.write_text('no picture')
    page.set_input_files('#file', text)
    page.wait_for_selector('#status.wrong')
    assert page.locator('#status').inner_text() == 'picture.txt is no picture that this browser reads'


@pytest.mark.slow
def test_what_was_opened_last_is_shown_even_when_it_is_read_first(exported, open_page, tmp_path):
    page = open_page(exported[2])
    page.evaluate(
        '() => { HTMLImageElement.prototype.decode = () => new Promise((resolve) => { window.read = resolve }) }'
    )
    page.locator('#examples button').first.click()
    drop(page, (96, 30), tmp_path)
    drawn, status = page.evaluate(
        """async () => {
        window.read();
        for (let i = 0; i < 2; i++) await new Promise((resolve) => requestAnimationFrame(resolve));
        return [window.live.state.drawn, document.getElementById('status').textContent] }"""
    )
    assert drawn == page.evaluate('window.live.state.drawn') and 'Looking' not in status
    np.testing.assert_array_equal(pixels(page), np.full((1, 48, 48, 3), (200, 30, 60)))


@pytest.mark.slow
@pytest.mark.parametrize('source', ['file', 'camera'])
def test_what_failed_is_not_told_once_something_else_is_open(exported, open_page, tmp_path, source):
    page = open_page(exported[2])
    page.evaluate(
        """() => {
        const late = () => new Promise((resolve, reject) => { window.fail = () => reject(new Error('late')) });
        window.read = window.createImageBitmap;
        window.createImageBitmap = late;
        navigator.mediaDevices.getUserMedia = late }"""
    )
    if source == 'file':
        text = tmp_path / 'picture.txt'
        text.write_text('no picture')
        page.set_input_files('#file', text)
    else:
        page.locator('#camera').click()
    page.wait_for_function('() => window.fail')
    page.evaluate('() => { window.createImageBitmap = window.read }')
    drop(page, (96, 30), tmp_path)
    told = page.evaluate("async () => { await window.fail(); return document.getElementById('status').textContent }")
    assert 'ms for 48×48 pixels' in told
    assert 'ms for 48×48 pixels' in page.locator('#status').inner_text()


@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_it_fits_on_a_phone_and_names_its_controls(exported, open_page, scheme):
    phone = dict(viewport=dict(width=390, height=844), device_scale_factor=2, has_touch=True, is_mobile=True)
    page = open_page(exported[2], color_scheme=scheme, **phone)
    page.wait_for_function('() => window.live.state.drawn > 0')
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    back = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert (back == 'rgb(255, 255, 255)') == (scheme == 'light')
    before = page.evaluate('window.live.state.shown.query')
    wait_drawn(page, lambda: page.locator('#picture').tap(position=dict(x=20, y=20)))
    assert page.evaluate('window.live.state.shown.query') != before
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('select, input:not([hidden]), button, [role="img"]')].filter((e) =>
        !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent.trim() ||
        e.querySelector('img')?.alt)).map((e) => e.id)"""
    )
    assert nameless == []
    page.locator('details summary').click()
    licences = page.locator('#licences').inner_text()
    assert 'Copyright (c) Microsoft Corporation' in licences and 'Permission is hereby granted' in licences


# ---- Models that say the same of every picture


def constant_model(**outputs) -> bytes:
    """An ONNX file whose outputs are these arrays."""
    onnx = pytest.importorskip('onnx')
    nodes = [
        onnx.helper.make_node('Constant', [], [name], value=onnx.numpy_helper.from_array(value))
        for name, value in outputs.items()
    ]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in outputs.items()
    ]
    image = onnx.helper.make_tensor_value_info('image', onnx.TensorProto.UINT8, ['batch', 'height', 'width', 3])
    graph = onnx.helper.make_graph(nodes, 'constant', [image], values)
    opset = onnx.helper.make_opsetid('', 18)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


def colour_at(page, x, y) -> tuple[int, ...]:
    """What the canvas shows at a place of the picture."""
    return tuple(
        page.evaluate(
            """([x, y]) => { const canvas = document.getElementById('picture');
            const scale = canvas.width / window.live.state.shown.picture.width;
            return [...canvas.getContext('2d').getImageData((x + 0.5) * scale, (y + 0.5) * scale, 1, 1).data] }""",
            [x, y],
        )[:3]
    )


@pytest.mark.slow
def test_detections_are_drawn_in_the_picture(onnxruntime_web, open_page, tmp_path):
    masks = np.zeros((1, 3, 4, 4), np.float32)
    masks[0, 0, :, 2:] = 1  # the right half
    model = constant_model(
        boxes=np.array([[[10, 20, 50, 60], [60, 20, 90, 40], [0, 0, 0, 0]]], np.float32),
        scores=np.array([[0.9, 0.4, -1]], np.float32),
        labels=np.array([[1, 0, -1]]),
        box_masks=masks,
    )
    # pictures of 200 x 100 become inputs of 100 x 50
    steps, _ = resizing_of([dict(type='Resize', scale=(100, 60), keep_ratio=True)])
    written = write_page(
        tmp_path / 'page.html', model, onnxruntime_web, title='<a & b>', task='detection', facts='', resizing=steps,
        resizes=True, classes=['cat', 'dog'], palette=['#0000ff', '#00ff00'],
    )  # fmt: skip
    page = open_page(written[0])
    assert page.title() == '<a & b>, live'
    drop(page, (200, 100), tmp_path, colour=(100, 100, 100))
    found = page.evaluate('window.live.detections()')
    assert [(each['label'], each['box']) for each in found] == [(1, [20, 40, 100, 120]), (0, [120, 40, 180, 80])]
    assert [row.split('\n') for row in page.locator('#bars li').all_inner_texts()] == [['dog', '0.90'], ['cat', '0.40']]
    assert colour_at(page, 40, 70) == (100, 100, 100)
    red, green, blue = colour_at(page, 85, 70)
    assert green > 150 > 100 > red == blue
    wait_drawn(page, lambda: page.locator('#threshold').fill('0.5'))
    assert len(page.evaluate('window.live.detections()')) == 1
    wait_drawn(page, lambda: page.locator('#marks').click())
    assert colour_at(page, 85, 70) == (100, 100, 100)
    wait_drawn(page, lambda: page.select_option('#size', '0.5'))
    assert page.evaluate('window.live.state.shown.placement.input') == [50, 25]
    assert page.locator('.of-attention:visible').count() == 0


@pytest.mark.slow
def test_segments_are_drawn_from_a_page_in_parts(onnxruntime_web, open_page, tmp_path, monkeypatch):
    """A model that is too large for one file lies beside the page, which loads it without a server."""
    monkeypatch.setattr(build, 'LARGEST', 0)
    monkeypatch.setattr(build, 'PART', 200)
    labels = np.zeros((1, 40, 60), np.int64)
    labels[:, :, 45:] = 2
    steps, _ = resizing_of([dict(type='Resize', scale=(60, 40))])
    written = write_page(
        tmp_path / 'a page.html', constant_model(labels=labels), onnxruntime_web, title='parts', task='segmentation',
        facts='', resizing=steps, classes=['sky', 'sea', 'sand'], palette=['#0000ff', '#00ff00', '#ff0000'],
    )  # fmt: skip
    assert len(written) > 2 and written[1].parent.name == 'a page_files'
    page = open_page(written[0])
    drop(page, (120, 120), tmp_path, colour=(100, 100, 100))
    rows = [row.split('\n') for row in page.locator('#bars li').all_inner_texts()]
    assert rows == [['sky', '75 %'], ['sand', '25 %']]
    (sky, sand) = colour_at(page, 30, 60), colour_at(page, 110, 60)
    assert sky[2] > 150 > 100 > sky[0] and sand[0] > 150 > 100 > sand[2]


@pytest.mark.slow
def test_a_model_that_does_not_load_is_told_in_one_line(onnxruntime_web, browser, tmp_path):
    written = write_page(tmp_path / 'page.html', b'no model', onnxruntime_web, title='', task='backbone', facts='')
    page = browser.new_page()
    page.goto(written[0].as_uri())
    page.wait_for_selector('#status.wrong')
    assert page.locator('#status').inner_text().startswith('This page cannot run its model: ')
    page.close()


# ---- What goes into the page


RESIZINGS = [
    ([dict(type='Resize', scale=(48, 48))], [dict(kind='exact', width=48, height=48)]),
    ([dict(type='Resize', scale=64)], [dict(kind='exact', width=64, height=64)]),
    ([dict(type='mmdet.Resize', scale=(1333, 800), keep_ratio=True)], [dict(kind='fit', long=1333, short=800)]),
    (
        [dict(type='ResizeEdge', scale=256), dict(type='CenterCrop', crop_size=224), dict(type='PackInputs')],
        [dict(kind='edge', edge='short', size=256), dict(kind='crop', width=224, height=224)],
    ),
    (None, IMAGENET),
]


@pytest.mark.parametrize('pipeline, steps', RESIZINGS)
def test_the_steps_of_a_pipeline_are_those_of_the_page(pipeline, steps):
    assert resizing_of(pipeline) == (steps, [])


def test_a_fixed_shape_is_kept_and_other_steps_are_told():
    exact = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(60, 40))]
    assert resizing_of(exact, (40, 60))[0] == [dict(kind='exact', width=60, height=40)]
    assert [step['kind'] for step in resizing_of(exact, (60, 40))[0]] == ['into', 'fill']
    assert resizing_of([dict(type='LoadAnnotations'), dict(type='RandomFlip')]) == ([], ['RandomFlip'])


@pytest.mark.slow
def test_pictures_become_inputs_as_in_the_pipelines(onnxruntime_web, open_page, tmp_path):
    pytest.importorskip('mmpretrain')
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope

    sizes = [(640, 427), (427, 640), (100, 100), (1000, 300), (31, 45)]
    model = constant_model(stage1=np.zeros((1,), np.float32))
    page = open_page(write_page(tmp_path / 'page.html', model, onnxruntime_web, title='', task='backbone', facts='')[0])
    for pipeline, _ in RESIZINGS:
        page.evaluate('steps => { window.live.header.resizing = steps }', resizing_of(pipeline)[0])
        if pipeline is None:
            pipeline = [dict(type='ResizeEdge', scale=256), dict(type='CenterCrop', crop_size=224)]
        kinds = [dict(step, type=step['type'].rpartition('.')[2]) for step in pipeline]
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            transform = Compose([step for step in kinds if step['type'] != 'PackInputs'])
        for width, height in sizes:
            image = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)  # its own places
            made = transform(dict(img=image, img_shape=(height, width)))
            placement = page.evaluate('([width, height]) => window.live.place(width, height, false)', [width, height])
            assert placement['kept'] == list(made['img_shape'][::-1]), (pipeline, width, height)
            np.testing.assert_allclose(placement['scale'], made['scale_factor'], rtol=1e-6)
            for axis, corner in enumerate(placement['corner']):
                expected = (corner + 0.5) / placement['scale'][axis] - 0.5
                assert made['img'][0, 0, axis] == pytest.approx(max(expected, 0), abs=1e-3)


def test_every_class_has_a_colour():
    assert palette_of(2, [(1, 2, 3), (255, 0, 16)]) == ['#010203', '#ff0010']
    assert len(set(palette_of(200))) > 190
    assert len(palette_of(0)) == 1


# ---- ONNX Runtime for browsers


def pack(folder) -> bytes:
    """A package of npm with two files that are not what they should be."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        for name in (runtime.SCRIPT, runtime.WASM):
            content = f'/* ONNX Runtime Web v9.8.7 */ {name}'.encode()
            info = tarfile.TarInfo(f'package/dist/{name}')
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path = folder / runtime.NAME / '-' / f'{runtime.NAME}-{runtime.VERSION}.tgz'
    path.parent.mkdir(parents=True)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def test_the_runtime_is_downloaded_once_and_compared(tmp_path, monkeypatch, capsys):
    pytest.importorskip('onnxruntime')
    archive = pack(tmp_path / 'registry')
    monkeypatch.setenv('npm_config_registry', (tmp_path / 'registry').as_uri())
    monkeypatch.setenv('DAT_MM_CACHE', str(tmp_path / 'cache'))
    with pytest.raises(UserError, match=r'its SHA-512 is another.*--runtime'):
        runtime.find_runtime()
    assert not (tmp_path / 'cache').exists()

    monkeypatch.setattr(runtime, 'SHA512', base64.b64encode(hashlib.sha512(archive).digest()).decode())
    found = runtime.find_runtime()
    assert found.version == '9.8.7' and found.wasm.endswith(b'.wasm')
    assert 'Permission is hereby granted' in found.licences
    monkeypatch.setenv('npm_config_registry', (tmp_path / 'nothing').as_uri())
    assert runtime.find_runtime() == found
    assert capsys.readouterr().out.count('downloaded once') == 2


def test_a_machine_without_a_network_is_given_the_runtime(tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    monkeypatch.setenv('npm_config_registry', (tmp_path / 'nothing').as_uri())
    monkeypatch.setenv('DAT_MM_CACHE', str(tmp_path / 'cache'))
    with pytest.raises(UserError, match=r'cannot be had.*npm pack onnxruntime-web@.*--runtime'):
        runtime.find_runtime()
    pack(tmp_path)
    file = next(tmp_path.rglob('*.tgz'))
    found = runtime.find_runtime(file)
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path / 'node_modules', filter='data')
    assert runtime.find_runtime(tmp_path / 'node_modules') == found
    assert runtime.find_runtime(tmp_path / 'node_modules' / 'package' / 'dist') == found
    with pytest.raises(UserError, match=r'has no ort\.wasm'):
        runtime.find_runtime(tmp_path)
    (tmp_path / 'text.tgz').write_text('no archive')
    with pytest.raises(UserError, match='neither a folder nor a package'):
        runtime.find_runtime(tmp_path / 'text.tgz')
