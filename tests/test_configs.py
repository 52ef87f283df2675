# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Every shipped config parses, and everything in it builds. What it says is held in test_recipes.py."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from counts import parameters_upstream

pytest.importorskip('mmengine')

from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, TRANSFORMS, VISUALIZERS, DefaultScope

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
LEAVES = sorted(
    path.relative_to(CONFIGS).with_suffix('').as_posix() for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts
)
FOLDERS = {'imagenet': 'mmpretrain', 'coco': 'mmdet', 'ade20k': 'mmseg', 'shapes': None}
PARAMETERS = {
    Path(name).relative_to('configs').with_suffix('').as_posix(): int(count)
    for metafile in CONFIGS.rglob('metafile.yml')
    for name, count in re.findall(r'Config: (\S+)\n    Metadata:\n      Parameters: (\d+)', metafile.read_text())
}
PHASES = ('train', 'val', 'test')


def load(leaf):
    cfg = Config.fromfile(CONFIGS / f'{leaf}.py')
    pytest.importorskip(cfg.default_scope)
    import_module(f'{cfg.default_scope}.utils').register_all_modules(init_default_scope=False)
    return cfg


def build_model(cfg):
    """Without memory for the weights; the toolboxes' own backbones need some, to set themselves up."""
    with torch.device('meta' if cfg.model.backbone.type == 'dat_mm.DAT' else 'cpu'):
        return MODELS.build(cfg.model)


def test_there_are_configs():
    assert len(LEAVES) > 80
    assert {leaf.partition('/')[0] for leaf in LEAVES} == set(FOLDERS)


@pytest.mark.parametrize('leaf', LEAVES)
def test_config_parses_and_builds(leaf):
    cfg = load(leaf)
    assert cfg.default_scope == FOLDERS[leaf.partition('/')[0]] or leaf.startswith('shapes/')
    assert cfg.custom_imports == dict(imports=['dat_mm'], allow_failed_imports=False)
    assert not [key for key in cfg if key.startswith('_')]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg)
        assert type(model).__name__ == cfg.model.type
        assert leaf in PARAMETERS, f'tools/metafile_entry.py configs/{leaf}.py prints what the metafile lacks'
        assert parameters_upstream(model) == PARAMETERS[leaf]
        for phase in PHASES:
            for transform in cfg[f'{phase}_dataloader'].dataset.pipeline:
                TRANSFORMS.build(transform)
        for transform in cfg.get('tta_pipeline', ()):
            TRANSFORMS.build(transform)
        if 'tta_model' in cfg:
            MODELS.build(dict(cfg.tta_model, module=model))
        VISUALIZERS.build(dict(cfg.visualizer, name=leaf, save_dir=None, vis_backends=None))
        for hook in cfg.default_hooks.values():
            HOOKS.build(hook)


@pytest.mark.parametrize('leaf', LEAVES[::9])  # writing is slow, and they are much alike
def test_config_survives_being_written(leaf, tmp_path):
    """A runner writes its config beside the checkpoints, and that file is used again."""
    cfg = Config.fromfile(CONFIGS / f'{leaf}.py', import_custom_modules=False)
    cfg.dump(tmp_path / 'copy.py')
    assert Config.fromfile(tmp_path / 'copy.py', import_custom_modules=False).to_dict() == cfg.to_dict()


@pytest.mark.parametrize('leaf', LEAVES)
def test_name_tells_the_batch(leaf):
    cfg = Config.fromfile(CONFIGS / f'{leaf}.py', import_custom_modules=False)
    gpus, images = map(int, re.search(r'_(\d+)xb(\d+)', leaf).groups())
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=gpus * images)


def test_configs_stand_on_their_own():
    """mmseg's and mmpretrain's configs cannot be bases on every stack; bases are files of this repository."""
    for path in CONFIGS.rglob('*.py'):
        for base in re.findall(r"'([^']*\.py)'", path.read_text()):
            assert '::' not in base
            assert (path.parent / base).is_file(), f'{path}: {base}'


def test_one_line_names_the_weights_of_a_backbone():
    for leaf in LEAVES:
        cfg = Config.fromfile(CONFIGS / f'{leaf}.py', import_custom_modules=False)
        if cfg.model.backbone.type == 'dat_mm.DAT':
            assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=None), leaf
            cfg.merge_from_dict({'model.backbone.init_cfg.checkpoint': 'a.pth'})
        else:
            cfg.merge_from_dict(
                {'model.backbone.init_cfg.type': 'Pretrained', 'model.backbone.init_cfg.checkpoint': 'a.pth'}
            )
        assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint='a.pth'), leaf
