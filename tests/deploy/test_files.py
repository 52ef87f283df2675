# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Files of all kinds of models, in all runtimes, give PyTorch's numbers, and do in the place of a checkpoint."""

import logging
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('onnx')

import onnx
from deploy import cases

from dat_mm.commands.config import set_data_root
from dat_mm.commands.export import export
from dat_mm.commands.infer import infer
from dat_mm.commands.test import test as evaluate
from dat_mm.commands.trained import preprocessing_of
from dat_mm.deploy.blocks import every_node
from dat_mm.deploy.compare import differences
from dat_mm.deploy.networks import wrap
from dat_mm.deploy.precision import KEPT, halve, quantise
from dat_mm.deploy.runtimes import OpenVinoFile, open_exported, write_openvino
from dat_mm.errors import UserError
from dat_mm.ops import portable

pytestmark = pytest.mark.slow
one_stack = pytest.mark.one_stack
FILES = [
    ('classifier', 'datpp'),
    ('semantic-fpn', 'datpp'),
    ('upernet', 'dat'),
    ('retinanet', 'datpp'),
    ('mask-rcnn', 'dat'),
    ('cascade', 'datpp'),
]
SCENES = dict(num_train=8, num_val=4)


class Case:
    """A model as a config, a checkpoint, a network and, once asked for, files."""

    def __init__(self, folder, kind, generation):
        self.folder, self.kind, self.generation = folder, kind, generation
        cfg = cases.config(kind, generation)
        for phase in ('train', 'val', 'test'):
            leaf = cfg[f'{phase}_dataloader'].dataset
            leaf.make = dict(leaf.get('make', {}), **SCENES)
        set_data_root(cfg, str(folder.parent / 'shapes'))
        self.config, self.checkpoint = folder / 'config.py', folder / 'weights.pth'
        cfg.work_dir = str(folder / 'work')
        cfg.dump(self.config)
        model = cases.build(kind, generation)
        torch.save(dict(state_dict=model.state_dict(), meta={}), self.checkpoint)
        self.network = wrap(model, preprocessing_of(model))
        self.onnx, self.xml = folder / 'model.onnx', folder / 'model.xml'

    def file(self, suffix='.onnx'):
        if not self.onnx.exists():
            export(str(self.config), str(self.checkpoint), self.onnx)
        if suffix == '.xml' and not self.xml.exists():
            write_openvino(self.onnx, self.xml)
        return self.onnx if suffix == '.onnx' else self.xml

    def expected(self, images):
        with torch.no_grad():
            return {name: value.numpy() for name, value in self.network(torch.from_numpy(images)).items()}


@pytest.fixture(scope='module')
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope='module')
def case(tmp_path_factory, module_patch):
    logging.getLogger('torch.__trace').disabled = True  # pytest would keep all that it says of a graph
    made, root = {}, tmp_path_factory.mktemp('files')
    module_patch.setattr(portable, 'LOGITS', 10_000)  # loops have one step at small sizes, and several at others

    def get(kind, generation):
        if (kind, generation) not in made:
            folder = root / f'{kind}-{generation}'
            folder.mkdir()
            made[kind, generation] = Case(folder, kind, generation)
        return made[kind, generation]

    return get


@one_stack
@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
@pytest.mark.parametrize(('kind', 'generation'), FILES)
def test_a_file_gives_the_numbers_of_pytorch(case, kind, generation, suffix):
    """At the size that was traced, at others, at the smallest, and for several images."""
    case = case(kind, generation)
    run = open_exported(case.file(suffix))
    for count, height, width in ((2, 256, 320), (1, 75, 61), (3, 32, 32), (1, 1, 1)):
        images = cases.pictures(count, height, width)
        expected = case.expected(images)
        found = run(images)
        if 'boxes' in found and height == 1:  # of boxes that are all the same, any may be the first
            assert [x.shape for x in found.values()] == [x.shape for x in expected.values()]
            continue
        apart = differences(expected, found)
        assert max(apart.values()) < 1e-4, (height, width, apart)
        assert 'boxes' not in expected or (expected['scores'] > 0).any()


@one_stack
@pytest.mark.parametrize(('kind', 'generation'), FILES)
def test_a_file_has_standard_operators_and_says_what_it_is(case, kind, generation):
    case = case(kind, generation)
    model = onnx.load(case.file())
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in every_node(model.graph)} == {''}
    assert [entry.version for entry in model.opset_import] == [18]
    sizes = [size.dim_param or size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ['batch', 'height', 'width', 3]
    assert any(node.name.startswith('backbone.stages.2.blocks.0.attn.') for node in model.graph.node)
    told = open_exported(case.file()).metadata
    assert len(told['classes']) in (8, 9) and 'disc' in told['classes']  # segments have a background
    assert told['version'] and told['precision'] == 'fp32' and "type='dat_mm.DAT'" in told['config']
    assert [output.name for output in model.graph.output] == list(case.network.outputs)


@pytest.mark.parametrize(
    ('kind', 'generation', 'metrics'),
    [
        ('classifier', 'datpp', ['accuracy/top1']),
        ('semantic-fpn', 'datpp', ['mIoU', 'aAcc']),
        ('mask-rcnn', 'dat', ['coco/bbox_mAP', 'coco/segm_mAP_50']),
    ],
)
def test_a_file_tests_and_predicts_as_its_checkpoint(case, kind, generation, metrics, tmp_path, capsys):
    case = case(kind, generation)
    found = evaluate(str(case.config), str(case.file()), beside=str(case.checkpoint), work_dir=str(tmp_path))
    told = capsys.readouterr().out
    for metric in metrics:
        line = next(line for line in told.splitlines() if line.split()[:1] == [metric])
        ours, theirs, _ = map(float, line.split()[1:])
        assert ours == pytest.approx(found[metric], abs=1e-4) and ours == pytest.approx(theirs, abs=2e-3)
    picture = next((case.folder.parent / 'shapes/images/val').iterdir())
    predicted = [
        infer(str(picture), str(case.config), str(file), out_dir=str(tmp_path / file.suffix[1:]), device='cpu')
        for file in (case.file(), case.checkpoint)
    ]
    ours, theirs = (next(iter(each.values())) for each in predicted)
    assert ours.keys() == theirs.keys()
    if kind == 'classifier':
        assert [x['class'] for x in ours['top']] == [x['class'] for x in theirs['top']]
        assert np.allclose([x['score'] for x in ours['top']], [x['score'] for x in theirs['top']], atol=1e-5)
    elif kind == 'mask-rcnn':
        assert ours['labels'] == theirs['labels'] and len(ours['labels'])
        assert np.allclose(ours['bboxes'], theirs['bboxes'], atol=1e-3)
    else:
        assert ours['shares'] == pytest.approx(theirs['shares'], abs=1e-3)


@one_stack
def test_windows_of_mirrored_images_go_through_the_file(case, tmp_path):
    """The toolbox cuts windows and mirrors images around the file, as around its own network."""
    case = case('semantic-fpn', 'datpp')
    windows = ['mode=slide', 'crop_size=(64,64)', 'stride=(48,48)']
    asked = dict(tta=True, work_dir=str(tmp_path), cfg_options=[f'model.test_cfg.{option}' for option in windows])
    found, expected = (evaluate(str(case.config), str(model), **asked) for model in (case.file(), case.checkpoint))
    assert found['aAcc'] == pytest.approx(expected['aAcc'], abs=2e-3) and found['aAcc'] > 0
    plain = evaluate(str(case.config), str(case.file()), work_dir=str(tmp_path))
    assert plain['aAcc'] != found['aAcc']


@one_stack
@pytest.mark.parametrize('generation', ['dat', 'datpp'])
def test_onnx_runtime_joins_every_gelu(case, generation, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / 'optimised.onnx')
    file = case('classifier', generation).file()
    onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    kinds = Counter(node.op_type for node in every_node(onnx.load(tmp_path / 'optimised.onnx').graph))
    written = Counter(node.op_type for node in every_node(onnx.load(file).graph))
    assert kinds['Gelu'] + kinds['BiasGelu'] == written['Erf'] > 0 and not kinds['Erf']


@one_stack
def test_half_of_the_weights(case, tmp_path):
    case = case('classifier', 'datpp')
    halve(case.file(), tmp_path / 'half.onnx')
    images = cases.pictures(2, 64, 64)
    apart = differences(case.expected(images), open_exported(tmp_path / 'half.onnx')(images))
    assert 0 < apart['scores'] < 1e-2
    model = onnx.load(tmp_path / 'half.onnx')
    halves = {weight.name for weight in model.graph.initializer if weight.data_type == onnx.TensorProto.FLOAT16}
    assert halves and not any(part in name for name in halves for part in KEPT)
    whole = {weight.name for weight in model.graph.initializer if weight.data_type == onnx.TensorProto.FLOAT}
    assert any('offset_net.conv.weight' in name for name in whole)


@one_stack
@pytest.mark.parametrize(('kind', 'generation'), [('classifier', 'datpp'), ('mask-rcnn', 'dat')])
def test_products_in_eight_bits(case, kind, generation, tmp_path):
    """Layers are quantised; the network of the offsets and the products of the attention are not."""
    case = case(kind, generation)
    small = tmp_path / 'int8.onnx'
    quantise(case.file(), small, (cases.pictures(1, 64, 64 + n) for n in range(6)))
    assert small.stat().st_size < case.file().stat().st_size
    model = onnx.load(small)
    quantised = {
        node.name.rpartition('/')[0]
        for node in model.graph.node
        if node.op_type in ('MatMul', 'Gemm', 'Conv') and 'DequantizeLinear' in node.input[1]
    }
    assert any(name.endswith('attn.proj_out') for name in quantised) and any('mlp' in name for name in quantised)
    assert not any('offset_net' in name or name.endswith('.attn') for name in quantised)
    folded = [node for node in model.graph.node if node.op_type == 'Conv' and '.blocks.' in node.name]
    folded = [node for node in folded if 'attn' not in node.name]
    assert bool(folded) == (generation == 'datpp')  # kernels with a 1 in the middle stay in float32
    assert not any('DequantizeLinear' in node.input[1] for node in folded)
    images = cases.pictures(2, 64, 64)
    found = open_exported(small)(images)
    if kind == 'classifier':
        assert differences(case.expected(images), found)['scores'] < 0.2
    else:
        assert (found['scores'] > 0).any()


@one_stack
def test_a_file_of_one_size_and_normalised_images(case, tmp_path):
    case, file = case('classifier', 'datpp'), tmp_path / 'fixed.onnx'
    asked = dict(shape=(64, 96), preprocess='outside', check=True)
    assert export(str(case.config), str(case.checkpoint), file, **asked)['scores'] < 1e-4
    run = open_exported(file)
    images = cases.pictures(3, 64, 96)
    assert differences(case.expected(images), run(images))['scores'] < 1e-4
    with pytest.raises(UserError, match='takes images of 64x96 pixels, not 96x64; export it without --shape'):
        run(cases.pictures(1, 96, 64))


@one_stack
@pytest.mark.skipif(not which('g++'), reason='there is no g++ to compile the program with')
def test_the_program_in_the_docs_prints_what_python_finds(case, tmp_path):
    page = (Path(__file__).parents[2] / 'docs/deploy.md').read_text()
    (program,) = re.findall(r'```cpp\n(.*?)```', page, re.S)
    (tmp_path / 'detect.cpp').write_text(program)
    (command,) = re.findall(r'^OV=.*\ng\+\+.*', page, re.M)
    environment = os.environ | {'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=environment)

    file, (image,) = case('mask-rcnn', 'dat').file(), cases.pictures(1, 75, 61)
    image.tofile(tmp_path / 'pixels.rgb')
    arguments = [tmp_path / 'detect', file, tmp_path / 'pixels.rgb', '75', '61']
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    rows = np.array([line.split() for line in printed.splitlines()], dtype=np.float64)
    found = open_exported(file)(image[None])
    n = int((found['labels'] >= 0).sum())
    expected = {name: found[name][:, :n] for name in ('labels', 'scores', 'boxes')}
    apart = differences(expected, dict(labels=rows[None, :, 0], scores=rows[None, :, 1], boxes=rows[None, :, 2:]))
    assert n and max(apart.values()) < 1e-4, apart


@one_stack
def test_a_bare_backbone_needs_no_config(tmp_path, capsys):
    from dat_mm import DAT

    backbone = DAT('dat-nano', out_indices=(0, 1, 2, 3))
    torch.save(backbone.state_dict(), tmp_path / 'weights.pth')
    found = export('dat-nano', str(tmp_path / 'weights.pth'), tmp_path / 'b.xml', shape=(64, 96), check=True)
    assert list(found) == ['stage1', 'stage2', 'stage3', 'stage4'] and max(found.values()) < 1e-4
    assert isinstance(open_exported(tmp_path / 'b.xml'), OpenVinoFile)
    assert 'in:  image (batch, 64, 96, 3), RGB bytes' in capsys.readouterr().out


@one_stack
@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_a_file_of_a_fixed_batch_takes_more_and_fewer_images(case, tmp_path, capsys, suffix):
    case = case('classifier', 'datpp')
    out = tmp_path / f'three{suffix}'
    found = export(str(case.config), str(case.checkpoint), out, shape=(64, 48), batch=3, check=True)
    assert max(found.values()) < 1e-4
    told = capsys.readouterr().out
    assert 'in:  image (3, 64, 48, 3), RGB bytes' in told and 'made pictures of 64x48, 3 at a time' in told
    fixed, images = open_exported(out), cases.pictures(7, 64, 48)
    expected = open_exported(case.file(suffix))(images)
    for few in (1, 3, 7):
        assert max(differences({name: x[:few] for name, x in expected.items()}, fixed(images[:few])).values()) < 1e-4


@one_stack
def test_what_is_wrong_is_told_in_one_line(case, tmp_path):
    case = case('classifier', 'datpp')
    known = str(case.config), str(case.checkpoint)
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in 'xy']
    graph = onnx.helper.make_graph([onnx.helper.make_node('Identity', ['x'], ['y'])], 'other', ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid('', 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / 'other.onnx')
    (tmp_path / 'broken.onnx').write_bytes(b'no graph')
    detector = str(cases.CONFIGS / 'retinanet_dat-nano_fpn_1xb4_shapes.py')
    for call, told in (
        (lambda: export(*known, tmp_path / 'model.pt'), r'model.pt: the name must end in .onnx, or in .xml'),
        (lambda: export('dat-giant', 'x.pth', tmp_path / 'x.onnx'), 'dat-giant is no config file, and no arch: '),
        (lambda: export(*known, tmp_path / 'x.onnx', shape=(0, 8)), '--shape 0 8: two positive numbers'),
        (
            lambda: export(*known, tmp_path / 'x.onnx', batch=2),
            '--batch 2: a positive number, and together with --shape',
        ),
        (lambda: export(*known, tmp_path / 'x.onnx', batch=0, shape=(8, 8)), '--batch 0: a positive number'),
        (
            lambda: export(*known, tmp_path / 'x.onnx', batch=2, shape=(8, 8), page='x.html'),
            '--batch 2: a page looks at one picture',
        ),
        (lambda: export(known[0], 'x.pth', tmp_path / 'x.onnx'), 'x.pth: no such checkpoint'),
        (lambda: open_exported(tmp_path / 'none.onnx'), 'none.onnx: no such file'),
        (lambda: open_exported(tmp_path / 'other.onnx'), 'other.onnx was not written by tools/export.py'),
        (lambda: open_exported(tmp_path / 'broken.onnx'), 'broken.onnx is no ONNX file that can be run'),
        (
            lambda: evaluate(detector, str(case.file())),
            'model.onnx is for classification, and the config for detection',
        ),
    ):
        with pytest.raises(UserError, match=told) as error:
            call()
        assert '\n' not in str(error.value)


def test_rows_that_change_places_are_no_difference():
    """Detections are compared with those that they are; another number of them is a difference, and so is a label."""
    one = dict(
        boxes=np.float32([[[0, 0, 9, 9], [5, 5, 20, 20], [0, 0, 0, 0]]]),
        scores=np.float32([[0.8, 0.8, -1]]),
        labels=np.array([[1, 1, -1]]),
    )
    other = {name: value[:, [1, 0, 2]].copy() for name, value in one.items()}
    assert max(differences(one, other).values()) == 0
    other['boxes'][0, 0, 0] += 2
    assert differences(one, other)['boxes'] == pytest.approx(0.1)
    other['scores'][0, 1] = -1
    assert differences(one, other)['boxes'] == float('inf')
