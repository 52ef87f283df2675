# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The order in which a config is prepared, what it is for, and that every command keeps to it."""

import ast
from pathlib import Path

import pytest
from mmengine.config import Config

import dat_mm.commands
from dat_mm.commands import prepare as module
from dat_mm.commands.checks import check_packages
from dat_mm.commands.prepare import prepare
from dat_mm.errors import UserError

COMMANDS = Path(dat_mm.commands.__path__[0])
ORDER = [
    *('load_config', 'import_toolbox', 'set_work_dir', 'check_phase', 'edit', 'set_loader_defaults', 'fix_workers'),
    *('set_precision', 'check_packages', 'check_data', 'check_weights', 'set_launcher'),
]
OF_TRAINING = {'set_precision', 'check_weights'}
OF_LOADERS = {'set_loader_defaults', 'fix_workers'}


@pytest.mark.parametrize(
    ('options', 'left_out'),
    [
        (dict(phases=('train', 'val'), training=True), set()),
        (dict(phases=('test',)), OF_TRAINING),
        (dict(), OF_TRAINING | OF_LOADERS),
    ],
    ids=['train', 'test', 'infer'],
)
def test_the_order_of_the_steps(options, left_out, monkeypatch):
    taken = []
    for name in set(ORDER) - {'edit'}:
        monkeypatch.setattr(module, name, lambda *_, name=name: taken.append(name) or Config())
    prepare('config.py', edit=lambda cfg: taken.append('edit'), **options)
    assert taken == [name for name in ORDER if name not in left_out]


@pytest.mark.parametrize('command', ['train', 'test', 'browse_data', 'infer'])
def test_commands_prepare_their_config_once_and_by_no_step_of_their_own(command):
    names = [
        node.id for node in ast.walk(ast.parse((COMMANDS / f'{command}.py').read_text())) if isinstance(node, ast.Name)
    ]
    assert names.count('prepare') == 1
    assert not set(names) & set(ORDER) - {'edit'}


def test_edit_sees_the_options_and_has_the_last_word(tiny_config):
    def edit(cfg):
        seen.append(cfg.train_dataloader.batch_size)
        cfg.train_dataloader.batch_size = 2

    seen = []
    options = ['train_dataloader.batch_size=3']
    assert prepare(tiny_config('mmpretrain'), options, edit=edit).train_dataloader.batch_size == 2
    assert seen == [3]


@pytest.mark.parametrize(('workers', 'persistent'), [(0, False), (2, True)])
def test_workers_that_edit_takes_away_are_not_persistent(workers, persistent, tiny_config):
    def edit(cfg):
        cfg.train_dataloader.num_workers = workers

    options = ['train_dataloader.num_workers=1']
    loader = prepare(tiny_config('mmpretrain'), options, edit=edit, phases=('train',)).train_dataloader
    assert loader.persistent_workers is persistent


def test_a_data_root_is_checked_where_the_option_moves_it(tiny_config):
    with pytest.raises(UserError, match=r'^/none.* does not exist'):
        prepare(tiny_config('mmdet'), ['data_root=/none'], phases=('train',))


@pytest.mark.parametrize(('phases', 'missing'), [(('test',), 'test'), (('val',), 'val'), (('train', 'val'), None)])
def test_a_config_has_the_data_that_a_command_is_about(phases, missing, tiny_config):
    config = tiny_config('mmpretrain')
    options = ['val_dataloader=None', 'val_evaluator=None', 'test_dataloader=None']
    if missing is None:
        prepare(config, options, phases=phases)
    else:
        with pytest.raises(UserError) as caught:
            prepare(config, options, phases=phases)
        assert str(caught.value) == f'{config} has no {missing}_dataloader'


def test_panoptic_data_says_what_it_needs(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name, *_: None if name == 'panopticapi' else name)
    config = COMMANDS.parents[1] / 'configs/coco/mask2former_datpp-tiny_8xb2-lsj-50e_coco-panoptic.py'
    with pytest.raises(UserError, match=r'CocoPanoptic.* needs panopticapi.*pip install --no-deps panopticapi-lite'):
        check_packages(Config.fromfile(config, import_custom_modules=False), ('val',))
    other = config.with_name('mask2former_datpp-tiny_8xb2-lsj-50e_coco.py')
    check_packages(Config.fromfile(other, import_custom_modules=False), ('val',))
