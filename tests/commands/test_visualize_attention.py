# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""tools/visualize_attention.py on models of all toolboxes: figures, pages, galleries, and errors of one line."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('mmdet')

from dat_mm.commands.config import load_config
from dat_mm.commands.prepare import import_toolbox
from dat_mm.commands.visualize_attention import look, plan
from dat_mm.errors import UserError
from dat_mm.visualize import Placement
from dat_mm.visualize.figures import FIGURES

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'visualize_attention.py'
SCOPES = ('mmdet', 'mmseg', 'mmpretrain')


def run(*arguments):
    sys.argv = [str(TOOL), *map(str, arguments)]
    runpy.run_path(str(TOOL), run_name='__main__')


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a config's model with random weights, and returns the file."""

    def write(config, name='checkpoint.pth'):
        from mmengine.registry import MODELS

        cfg = load_config(config)
        import_toolbox(cfg)
        model = MODELS.build(cfg.model)
        model.init_weights()  # until then, the embeddings of a decoder are whatever was in memory
        torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / name)
        return tmp_path / name

    return write


def header_of(page):
    return json.loads(re.search(r'id="header">(.*?)</script>', page.read_text(), re.DOTALL)[1])


@pytest.mark.parametrize('scope', SCOPES)
def test_a_figure_and_a_page(scope, tiny_config, tiny_data, checkpoint, tmp_path, capsys):
    config = tiny_config(scope)
    out, page = tmp_path / 'figure.pdf', tmp_path / 'page.html'
    arguments = (tiny_data / 'images/1.png', config, checkpoint(config), '--score-thr', 0)
    run(*arguments, '--query', '50,40', '--layer', '3.1', '--topk', 5, '--out', out, '--html', page)
    told = capsys.readouterr().out
    assert '1.png: stage 4, block 2, query 50,40: ' in told
    assert 'other layers: backbone.stages.2.blocks.1.attn' in told
    assert out.read_bytes().startswith(b'%PDF')
    header = header_of(page)
    assert header['query'] == [50, 40] and header['topk'] == 5
    assert header['size'] == [96, 72]
    assert header['layers'][header['layer']]['name'] == 'backbone.stages.3.blocks.1.attn'
    assert bool(header['boxes']) == (scope == 'mmdet')


@pytest.mark.parametrize('scope', SCOPES)
def test_the_whole_picture_is_where_the_pipeline_put_it(scope, tiny_config, tiny_data, checkpoint):
    """The corners of what the model saw are the corners of the picture, or of its middle where a pipeline crops."""
    from dat_mm.commands.infer import load_predictor
    from dat_mm.commands.visualize_attention import see_whole

    config = tiny_config(scope)
    predictor = load_predictor(config, checkpoint(config), device='cpu', edit=see_whole)
    view = look(predictor, tiny_data / 'images/1.png')
    placement = view.placement
    assert placement.size == (96, 72)
    kept_width, kept_height = placement.kept
    height, width = view.recording.input_size
    assert kept_width <= width and kept_height <= height  # the rest is padding
    corners = placement.to_input(np.array([(-0.5, -0.5), (95.5, 71.5)]))
    if scope == 'mmpretrain':
        np.testing.assert_allclose(corners.mean(axis=0), np.array([kept_width, kept_height]) / 2 - 0.5, atol=0.51)
    else:
        np.testing.assert_allclose(corners, [(-0.5, -0.5), (kept_width - 0.5, kept_height - 0.5)], atol=1e-6)


def test_a_folder_gives_a_gallery(tiny_config, tiny_data, checkpoint, tmp_path, capsys):
    config = tiny_config('mmpretrain')
    out, pages = tmp_path / 'out', tmp_path / 'pages'
    run(
        tiny_data / 'images',
        config,
        checkpoint(config),
        '--figure',
        'attention',
        'offsets',
        '--out',
        out,
        '--html',
        pages,
    )
    names = [f'{i}_{kind}.png' for i in range(6) for kind in ('attention', 'offsets')]
    assert sorted(path.name for path in out.glob('*.png')) == names
    gallery = (out / 'index.html').read_text()
    for name in names:
        assert f'src="{name}"' in gallery
    for i in range(6):
        assert f'href="../pages/{i}.html"' in gallery
        assert (pages / f'{i}.html').is_file()
    assert f'gallery: {out / "index.html"}' in capsys.readouterr().out
    shown = np.asarray(Image.open(out / '0_attention.png'))
    assert shown.std() > 10


def test_every_kind_of_figure_is_drawn(tiny_config, tiny_data, checkpoint, tmp_path):
    config = tiny_config('mmdet')
    kinds = [kind for kind in FIGURES if kind != 'decoder']
    run(tiny_data / 'images/0.png', config, checkpoint(config), '--figure', *kinds, '--out', tmp_path / 'out')
    for kind in kinds:
        assert np.asarray(Image.open(tmp_path / f'out/0_{kind}.png').convert('L')).std() > 5, kind


def test_a_decoder_is_drawn_beside_the_backbone(tiny_data, checkpoint, tmp_path):
    config = ROOT / 'configs/shapes/dino-3scale_datpp-nano_1xb4_shapes.py'
    options = '--cfg-options', 'model.num_queries=20'
    arguments = tiny_data / 'images/1.png', config, checkpoint(config), '--score-thr', 0, *options
    run(*arguments, '--figure', 'decoder', '--out', tmp_path / 'out.png')
    assert np.asarray(Image.open(tmp_path / 'out.png').convert('L')).std() > 5


def test_points_of_a_decoder_are_those_that_it_samples(checkpoint, tiny_data, monkeypatch):
    from mmcv.ops import multi_scale_deform_attn as ops

    from dat_mm.commands.infer import load_predictor

    seen = []
    sample = ops.multi_scale_deformable_attn_pytorch

    def watch(value, shapes, points, weights):
        seen.append((points, weights))
        return sample(value, shapes, points, weights)

    monkeypatch.setattr(ops, 'multi_scale_deformable_attn_pytorch', watch)
    config = ROOT / 'configs/shapes/dino-3scale_datpp-nano_1xb4_shapes.py'
    predictor = load_predictor(config, checkpoint(config), device='cpu')
    layers = look(predictor, tiny_data / 'images/1.png').recording.decoder
    assert list(layers) == [f'decoder.layers.{i}.cross_attn' for i in range(2)]
    for layer, (points, weights) in zip(layers.values(), seen[-2:], strict=True):
        assert torch.equal(layer.points, points) and torch.equal(layer.weights, weights)


def test_a_model_without_a_decoder_says_so(tiny_config, tiny_data, checkpoint, tmp_path, capsys):
    config = tiny_config('mmdet')
    with pytest.raises(SystemExit, match='RetinaNet has no decoder'):
        run(tiny_data / 'images/0.png', config, checkpoint(config), '--figure', 'decoder', '--out', tmp_path / 'out')


def test_a_checkpoint_of_the_authors_is_taken_as_it_is(golden, tiny_config, tiny_data, tmp_path, capsys):
    """Its weights are those of a formula, under the authors' keys, beside a config as in their files."""
    official = golden('v1_tiny_224').state_dict()
    torch.save({'model': official, 'epoch': 300}, tmp_path / 'dat_tiny.pth')
    config = tiny_config('mmpretrain')
    text = config.read_text()
    text += (
        "\nmodel['backbone'] = dict(type='dat_mm.DAT', arch='dat-tiny', out_indices=(3,))"
        "\nmodel['head'] = dict(type='LinearClsHead', num_classes=1000, in_channels=768,"
        " loss=dict(type='CrossEntropyLoss'))\n"
    )
    config.write_text(text)
    run(tiny_data / 'images/0.png', config, tmp_path / 'dat_tiny.pth', '--out', tmp_path / 'x.png', '--figure', 'depth')
    assert 'stages.2.blocks.5.attn' in capsys.readouterr().out
    assert (tmp_path / 'x.png').is_file()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            ['--layer', '0.0'],
            "layer '0.0' is no deformable layer of ImageClassifier: there are backbone.stages.2.blocks.1",
        ),
        (['--query', '96,3'], 'query 96,3 is outside the picture: X is 0 to 95, Y is 0 to 71'),
        (['--topk', '0'], 'topk=0 is not positive'),
        (['--figure', 'pie'], '--figure pie is not one of overview, points'),
        (['--dpi', '0'], '--dpi 0 is not positive'),
        (['--out', 'a.jpg'], '--out a.jpg: a figure ends in .png, .pdf, .svg'),
        (['--html', 'a.txt'], '--html a.txt: the page must end in .html'),
        (['--figure', 'heads', 'keys', '--out', 'a.png'], '--out a.png is one file, and there are 2 figures'),
    ],
)
def test_bad_input_is_one_line_that_says_what_there_is(options, message, tiny_config, tiny_data, checkpoint, tmp_path):
    config = tiny_config('mmpretrain')
    with pytest.raises(SystemExit) as caught:
        run(tiny_data / 'images/1.png', config, checkpoint(config), '--out', tmp_path / 'x.png', *options)
    assert caught.value.code.startswith(f'error: {message}')
    assert '\n' not in caught.value.code


def test_a_model_without_deformable_attention_is_one_line(tiny_config, tiny_data, checkpoint, tmp_path):
    config = tiny_config('mmpretrain')
    config.write_text(config.read_text() + "\nmodel['backbone'].update(kinds=['LS', 'LS', 'LS', 'LS'])\n")
    with pytest.raises(SystemExit, match='error: ImageClassifier has no deformable attention to look at'):
        run(tiny_data / 'images/1.png', config, checkpoint(config), '--out', tmp_path / 'x.png')


def test_files_are_planned_before_anything_runs(tmp_path):
    images = [Path('a/1.png'), Path('a/1.jpg'), Path('a/2.png')]
    files = plan(images, True, tmp_path, ['overview'], None)
    assert [found['overview'].name for found, _ in files.values()] == ['1.png.png', '1.jpg.png', '2.png']
    with pytest.raises(UserError, match='a folder of pictures needs a folder for its pages'):
        plan(images, True, tmp_path, ['overview'], 'page.html')


def test_a_resized_flipped_and_padded_sample_is_placed():
    meta = dict(
        ori_shape=(72, 96), img_shape=(60, 80), scale_factor=(80 / 96, 60 / 72), flip=True, flip_direction='horizontal',
        pad_shape=(64, 96),
    )  # fmt: skip
    placement = Placement.from_meta(meta)
    np.testing.assert_allclose(placement.to_input((-0.5, -0.5)), (79.5, -0.5), atol=1e-9)
    np.testing.assert_allclose(placement.to_input((95.5, 71.5)), (-0.5, 59.5), atol=1e-9)
