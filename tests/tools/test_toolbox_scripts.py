# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The toolboxes' own tools/train.py run our configs, from any folder, as scripts of an environment with dat_mm."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dat_mm.datasets.shapes import ensure_shapes

ROOT = Path(__file__).resolve().parents[2]
MAKE = dict(num_train=16, num_val=2)
LEAVES = {
    'mmdet': 'mask-rcnn_datpp-nano_fpn_1xb8_shapes',
    'mmseg': 'datpp-nano_semantic-fpn_1xb8_shapes-128x128',
    'mmpretrain': 'datpp-nano_1xb64_shapes',
}
METRICS = {'mmdet': 'coco/bbox_mAP', 'mmseg': 'mIoU', 'mmpretrain': 'accuracy/top1'}
# They need to be told that there is nothing persistent about no workers.
CUT = [
    'train_dataloader.batch_size=8',
    *(f'{phase}_dataloader.num_workers=0' for phase in ('train', 'val')),
    *(f'{phase}_dataloader.persistent_workers=False' for phase in ('train', 'val')),
    *(f'{phase}_dataloader.dataset.make.{key}={n}' for phase in ('train', 'val') for key, n in MAKE.items()),
]
ONE_EPOCH = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
TWO_ITERATIONS = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    ensure_shapes(root / 'shapes', **MAKE)
    return root


@pytest.fixture
def train(data, tmp_path):
    """Runs a toolbox's script in a folder that has nothing to do with the clone; returns what it printed."""

    def run(scope, config, *options):
        script = Path(find_spec(scope).origin).parent / '.mim/tools/train.py'
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        done = subprocess.run(
            [sys.executable, script, config, *options],
            env={**os.environ, 'PYTHONPATH': path, 'DAT_MM_DATA': str(data), 'OMP_NUM_THREADS': '1'},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize('scope', LEAVES)
def test_the_toolboxes_own_script_trains(scope, train, tmp_path):
    by_iterations = scope == 'mmseg'
    config = ROOT / f'configs/shapes/{LEAVES[scope]}.py'
    train(scope, config, '--cfg-options', *CUT, *(TWO_ITERATIONS if by_iterations else ONE_EPOCH))
    work_dir = tmp_path / 'work_dirs' / LEAVES[scope]
    assert (work_dir / ('iter_2.pth' if by_iterations else 'epoch_1.pth')).is_file()
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    assert METRICS[scope] in json.loads(log.read_text().splitlines()[-1])


@pytest.mark.slow
def test_the_toolboxes_own_script_resumes_with_our_runner(train, tmp_path):
    """As docs/train.md has it; torch >= 2.6 refuses mmengine's checkpoints to the default runner."""
    config = tmp_path / 'mine.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/shapes/{LEAVES['mmseg']}.py'\n"
        "custom_imports = dict(imports=['dat_mm', 'dat_mm.engine.runner'])\n"
        "runner_type = 'dat_mm.Runner'\n"
    )
    train('mmseg', config, '--cfg-options', *CUT, *TWO_ITERATIONS)
    printed = train('mmseg', config, '--resume', '--cfg-options', *CUT, *TWO_ITERATIONS, 'train_cfg.max_iters=4')
    assert 'iter: 2' in printed
    assert (tmp_path / 'work_dirs/mine/iter_4.pth').is_file()
