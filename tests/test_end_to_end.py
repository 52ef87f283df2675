# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Each real config of tiny size trains, validates, saves, resumes and tests. Options alone make it small.

Without --all-configs, pytest leaves out the configs that differ from another one only in the schedule (3x from 1x, 36
epochs from 12), in details of the backbone (the ablations) or, with the heads of detection and mask transformers, in
the backbone at all.
"""

import json
import math
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from dat_mm.datasets import write_mini_ade20k, write_mini_coco, write_mini_imagenet

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
LEAVES = {
    path.stem: path for folder in ('imagenet', 'coco', 'ade20k') for path in CONFIGS.glob(f'{folder}/**/*-tiny*.py')
}
PICTURES = {
    'imagenet': 'imagenet/val/n01440764',
    'coco': 'coco/val2017',
    'ade20k': 'ade/ADEChallengeData2016/images/validation',
}
# One config of each toolbox, and one of each kind that differs, also goes through the tools that draw.
DRAWN = (
    'datpp-tiny_32xb128_in1k',
    'mask-rcnn_datpp-tiny_fpn_32xb2-ms-1x_coco',
    'datpp-tiny_upernet_8xb2-160k_ade20k-512x512',
    'dino-4scale_datpp-tiny_8xb2-12e_coco',
    'mask2former_datpp-tiny_8xb2-lsj-50e_coco-panoptic',
)
METRICS = {'imagenet': 'accuracy/top1', 'coco': 'coco/bbox_mAP', 'ade20k': 'mIoU'}
PANOPTIC = 'coco_panoptic/PQ'

# Three epochs or iterations, a checkpoint after the second.
ANY = [
    *(f'{phase}_dataloader.num_workers=0' for phase in ('train', 'val', 'test')),
    'train_dataloader.batch_size=2',
    'train_cfg.val_interval=2',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=2',
    'default_hooks.checkpoint.save_last=False',
]
IMAGENET = [
    'train_cfg.max_epochs=3',
    'train_dataloader.dataset.pipeline.1.scale=64',
    *(f'{phase}_dataloader.dataset.pipeline.1.scale=(72,72)' for phase in ('val', 'test')),
    *(f'{phase}_dataloader.dataset.pipeline.2.crop_size=64' for phase in ('val', 'test')),
]
ADE20K = [
    'train_cfg.max_iters=3',
    'model.data_preprocessor.size=(64,64)',
    'train_dataloader.dataset.pipeline.2.scale=(256,64)',
    'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
    *(f'{phase}_dataloader.dataset.pipeline.1.scale=(256,64)' for phase in ('val', 'test')),
]
COCO = [
    'train_cfg.max_epochs=3',
    *(f'{phase}_dataloader.dataset.pipeline.1.scale=(128,96)' for phase in ('val', 'test')),
]
ONE_SCALE = ['train_dataloader.dataset.pipeline.2.scale=(128,96)']
MULTI_SCALE = [
    f'train_dataloader.dataset.pipeline.3.transforms.{option}'
    for option in (
        *('0.0.scales=[(80,128),(96,128)]', '1.0.scales=[(96,128)]'),
        *('1.1.crop_size=(48,72)', '1.2.scales=[(80,128),(96,128)]'),
    )
]
DETR = ['model.num_queries=20', 'model.test_cfg.max_per_img=8']
MASK2FORMER = ['train_cfg.max_iters=3', 'model.train_cfg.num_points=64', 'model.test_cfg.max_per_image=8']
JITTER = [
    'train_dataloader.dataset.pipeline.3.scale=(64,64)',
    'train_dataloader.dataset.pipeline.4.crop_size=(64,64)',
    'model.data_preprocessor.batch_augments.0.size=(64,64)',
    *(f'{phase}_dataloader.dataset.pipeline.1.scale=(128,96)' for phase in ('val', 'test')),
]
# A short side of 64, and a head with few points.
MASK2FORMER_ADE20K = [
    *(option for option in ADE20K if 'pipeline.2' not in option),
    'train_dataloader.dataset.pipeline.2.scales=[64]',
    'model.decode_head.train_cfg.num_points=64',
]
# These give few regions, and some boxes although the model has hardly learned.
ONE_STAGE = ['model.test_cfg.score_thr=0.0', 'model.test_cfg.max_per_img=8']
TWO_STAGES = [
    *('model.test_cfg.rcnn.score_thr=0.0', 'model.test_cfg.rcnn.max_per_img=8'),
    *('model.train_cfg.rpn_proposal.max_per_img=16', 'model.test_cfg.rpn.max_per_img=16'),
]


def differs(leaf):
    """Whether a config differs from those of its kind in more than what its name says."""
    if any(part in leaf for part in ('dino', 'deformable-detr', 'mask2former')) and 'datpp' not in leaf:
        return False
    return '-3x_' not in leaf and '-36e_' not in leaf and LEAVES[leaf].parent.name != 'ablation'


def pytest_generate_tests(metafunc):
    if 'leaf' in metafunc.fixturenames:
        everything = metafunc.config.getoption('--all-configs')
        metafunc.parametrize('leaf', sorted(leaf for leaf in LEAVES if everything or differs(leaf)))


def options(leaf, cfg):
    best = [] if leaf in DRAWN else ['default_hooks.checkpoint.save_best=None']
    return ANY + best + options_of_scope(leaf, cfg)


def options_of_scope(leaf, cfg):
    if cfg.default_scope == 'mmpretrain':
        # mmpretrain's Swin refuses maps smaller than its window
        return IMAGENET + (['model.backbone.pad_small_map=True'] if leaf.startswith('swin') else [])
    if cfg.default_scope == 'mmseg':
        return MASK2FORMER_ADE20K if 'mask2former' in leaf else ADE20K
    if 'mask2former' in leaf:
        return MASK2FORMER + JITTER
    if leaf.startswith(('dino', 'deformable-detr')):
        return COCO + MULTI_SCALE + DETR
    detector = ONE_STAGE
    if 'mask-rcnn' in leaf:
        stages = ['0.', '1.', '2.'] if 'cascade' in leaf else ['']
        detector = TWO_STAGES + [f'model.train_cfg.rcnn.{stage}sampler.num=16' for stage in stages]
    return COCO + (MULTI_SCALE if '-ms-' in leaf else ONE_SCALE) + detector


def run(tool, *arguments):
    runpy.run_path(ROOT / 'tools' / f'{tool}.py')['main']([str(argument) for argument in arguments])


def logged(work_dir):
    """The losses and the metrics of a run: {step: loss} and {step: metrics}."""
    losses, metrics = {}, {}
    for path in work_dir.glob('*/vis_data/scalars.json'):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if 'loss' in entry:
                losses[entry['step']] = entry['loss']
            else:
                step = entry.pop('step')
                metrics[step] = {key: value for key, value in entry.items() if 'time' not in key}
    return losses, metrics


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('mini')
    write_mini_coco(root / 'coco', num_train=2, num_val=2)
    write_mini_ade20k(root / 'ade', num_train=2, num_val=2)
    write_mini_imagenet(root / 'imagenet', num_train=1, num_val=1, size=96)
    return root


@pytest.fixture
def work_dir(tmp_path):
    """A folder for a run, removed after the test because its files are large."""
    yield tmp_path / 'work'
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.slow
def test_real_configs_run_end_to_end(leaf, data, work_dir, monkeypatch):
    monkeypatch.setenv('DAT_MM_DATA', str(data))
    # laying out the config for the log would take a third of the time
    for module in ('mmengine.config.config', 'yapf.yapflib.yapf_api'):  # mmengine of OneDL imports it late
        monkeypatch.setattr(f'{module}.FormatCode', lambda text, **_: (text, False), raising=False)
    config = LEAVES[leaf]
    folder = config.relative_to(CONFIGS).parts[0]
    cut = ['--cfg-options', *options(leaf, Config.fromfile(config))]
    by_iterations = folder == 'ade20k' or 'mask2former' in leaf
    metric = PANOPTIC if 'panoptic' in leaf else METRICS[folder]
    if 'panoptic' in leaf:
        pytest.importorskip('panopticapi')
    checkpoint = work_dir / ('iter_2.pth' if by_iterations else 'epoch_2.pth')

    run('train', config, '--work-dir', work_dir, *cut)
    losses, validated = logged(work_dir)
    assert checkpoint.is_file()
    assert len(losses) >= 3 and all(math.isfinite(loss) for loss in losses.values())

    run('train', config, '--work-dir', work_dir / 'resumed', '--resume', checkpoint, '--no-validate', *cut)
    resumed, _ = logged(work_dir / 'resumed')
    assert resumed and max(resumed) == max(losses) and min(resumed) > 1
    assert torch.cuda.is_available() or resumed == {step: losses[step] for step in resumed}

    run('test', config, checkpoint, '--work-dir', work_dir / 'tested', '--out', work_dir / 'metrics.json', *cut)
    metrics = json.loads((work_dir / 'metrics.json').read_text())
    assert metric in metrics
    assert torch.cuda.is_available() or metrics == pytest.approx(validated[2], nan_ok=True)

    if leaf in DRAWN:
        if leaf.startswith('dino'):
            flipped = work_dir / 'flipped.json'
            run('test', config, checkpoint, '--tta', '--work-dir', work_dir / 'flipped', '--out', flipped, *cut)
            assert metric in json.loads(flipped.read_text())
        images = data / PICTURES[folder]
        run('infer', images, config, checkpoint, '--out-dir', work_dir / 'found', '--score-thr', 0.0, *cut)
        found = json.loads((work_dir / 'found/predictions.json').read_text())
        assert sorted(found) == sorted(path.name for path in images.iterdir())
        run('browse_data', config, '--number', 2, '--out-dir', work_dir / 'fed', *cut)
        assert len(list((work_dir / 'fed').rglob('*.png'))) == 2
        run('analyze', work_dir, '--out-dir', work_dir)
        assert metric in (work_dir / 'results.md').read_text()
        assert (work_dir / 'losses.png').is_file() and (work_dir / 'metrics.png').is_file()
