# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""tools/check_data.py on configs of all toolboxes, with good data and with one thing wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip('mmengine')

ROOT = Path(__file__).parents[2]
CONFIGS = {
    'coco': 'coco/mask-rcnn_dat-tiny_fpn_8xb2-1x_coco.py',
    'ade20k': 'ade20k/dat-tiny_semantic-fpn_8xb4-40k_ade20k-512x512.py',
    'imagenet': 'imagenet/dat-tiny_32xb128_in1k.py',
}


@pytest.fixture
def data(tmp_path):
    from dat_mm.datasets import write_mini_ade20k, write_mini_coco, write_mini_imagenet

    write_mini_coco(tmp_path / 'coco', num_train=4, num_val=2)
    write_mini_ade20k(tmp_path / 'ade', num_train=4, num_val=2)
    write_mini_imagenet(tmp_path / 'imagenet', num_train=1, num_val=1)
    return tmp_path


def check(kind, data, *options):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    command = [sys.executable, ROOT / 'tools/check_data.py', ROOT / 'configs' / CONFIGS[kind], *options]
    environment = {**os.environ, 'PYTHONPATH': path, 'DAT_MM_DATA': str(data)}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, cwd=data)


@pytest.mark.slow
@pytest.mark.parametrize('kind', CONFIGS)
def test_good_data_passes_and_one_bad_file_of_each_kind_is_named(kind, data):
    done = check(kind, data, '--workers', 2)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert 'nothing is wrong' in done.stdout

    images = sorted((data / kind.removesuffix('20k')).rglob('*.[jJ][pP]*[gG]'))
    cut, gone, empty = images[0], images[1], images[2]
    cut.write_bytes(cut.read_bytes()[:500])
    gone.unlink()
    empty.write_bytes(b'')
    expected = {str(cut): 'damaged image', str(gone): 'missing file', str(empty): 'empty file'}
    if kind == 'coco':
        file = data / 'coco/annotations/instances_val2017.json'
        content = json.loads(file.read_text())
        content['annotations'][0]['bbox'] = [float('nan'), 0, 5, 5]
        file.write_text(json.dumps(content))
        expected[str(file)] = 'box that is not finite'
    elif kind == 'ade20k':
        file = sorted((data / 'ade').rglob('annotations/training/*.png'))[3]
        Image.new('L', (9, 9)).save(file)
        expected[str(file)] = 'segmentation map of another size'
    done = check(kind, data, '--out', 'faults.json')
    assert done.returncode == 1
    content = json.loads((data / 'faults.json').read_text())
    found = {str(Path(fault['file'])): fault['kind'] for fault in content['faults']}
    assert found == expected
    assert done.stderr.strip().splitlines()[-1].endswith(f'{len(expected)} faults in {len(expected)} files')
    assert all(f'    {path}: ' in done.stdout for path in expected)


@pytest.mark.slow
def test_annotations_that_cannot_be_read_are_told(data):
    file = data / 'coco/annotations/instances_train2017.json'
    file.write_text(file.read_text()[:-40])
    done = check('coco', data)
    assert done.returncode == 1
    assert f'{file}: it is no JSON: ' in done.stdout
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_phases_that_are_none_are_refused(data):
    done = check('coco', data, '--phases', 'train,all')
    assert done.returncode == 1 and "--phases train,all: 'all' is not one of train, val, test" in done.stderr
