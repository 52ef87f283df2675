# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Everything a user can get wrong is told in one line, before a model is built."""

import json
import socket

import pytest
import torch
from mmengine.config import Config, ConfigDict

from dat_mm.commands.checks import check_data, nearest_shapes_config
from dat_mm.commands.config import load_config, parse_options
from dat_mm.commands.precision import cast_focal_losses, set_precision
from dat_mm.commands.train import train, train_config
from dat_mm.engine.checkpoints import check_fit, latest_checkpoint, open_checkpoint, read_meta
from dat_mm.errors import UserError

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')


def test_options_are_read_as_the_toolboxes_read_them():
    options = parse_options(['a.b=1', 'c=[1,2]', 'd=x', 'e=True', 'f=None', 'g=a=b', 'h=(1,[2,3])'])
    assert options == {'a.b': 1, 'c': [1, 2], 'd': 'x', 'e': True, 'f': None, 'g': 'a=b', 'h': (1, [2, 3])}


CASES = {
    'no_config': (dict(config='none.py'), 'none.py: no such config file'),
    'option': (dict(cfg_options=['lr']), '--cfg-options lr: not of the form key=value'),
    'option_type': (dict(cfg_options=['model.backbone.arch.x=1']), 'model.backbone.arch'),
    'scope': (dict(cfg_options=['default_scope=mmpose']), "default_scope='mmpose' is not one of mmdet"),
    'base_batch_size': (dict(auto_scale_lr=True), 'auto_scale_lr.base_batch_size'),
    'resume': (dict(resume='none.pth'), 'none.pth: no such checkpoint'),
    'load_from': (dict(cfg_options=['load_from=none.pth']), 'none.pth: no such checkpoint'),
    'data': (dict(cfg_options=['train_dataloader.dataset.data_root=none']), 'none does not exist (the train data'),
    'prefix': (dict(cfg_options=['val_dataloader.dataset.data_prefix=none']), 'none does not exist (the val data'),
    'weights': (
        dict(cfg_options=['model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=none.pth']),
        'none.pth: no such checkpoint',
    ),
    'dtype': (dict(amp_dtype='float8'), '--amp-dtype float8: not one of float16, bfloat16'),
    'gpu': (dict(amp=True), '--amp needs a GPU'),
    'slurm': (dict(launcher='slurm'), '--launcher slurm: SLURM_PROCID, SLURM_NTASKS'),
    'mpi': (dict(launcher='mpi'), '--launcher mpi needs GPUs'),
    'torchrun': (dict(launcher='pytorch'), 'RANK'),
}


@pytest.mark.parametrize(('arguments', 'message'), CASES.values(), ids=CASES)
def test_one_line(arguments, message, tiny_config, monkeypatch):
    for module in ('mmengine.device', 'dat_mm.commands.precision'):
        monkeypatch.setattr(f'{module}.get_device', lambda: 'cpu')
    monkeypatch.delenv('RANK', raising=False)
    arguments = {'config': tiny_config('mmpretrain'), **arguments}
    with pytest.raises(UserError) as caught:
        train_config(**arguments)
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)


def test_missing_data_names_the_path_the_page_and_a_config_to_try(tmp_path):
    for name in ('coco/mask-rcnn_dat-tiny_fpn_16xb1-1x_coco.py', 'shapes/mask-rcnn_dat-nano_shapes.py', 'shapes/a.py'):
        (tmp_path / 'configs' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'configs' / name).touch()
    config = tmp_path / 'configs/coco/mask-rcnn_dat-tiny_fpn_16xb1-1x_coco.py'
    assert nearest_shapes_config(config).endswith('mask-rcnn_dat-nano_shapes.py')
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type='CocoDataset', data_root='data/coco'))), filename=config)
    with pytest.raises(UserError, match=r'^data/coco does not exist .*docs/data\.md.*mask-rcnn_dat-nano_shapes\.py'):
        check_data(cfg, ('train',))


DATASETS = {
    'wrapped': (dict(type='RepeatDataset', dataset=dict(type='A', data_root='{here}', ann_file='no.json')), 'no.json'),
    'several': (dict(type='ConcatDataset', datasets=[dict(data_root='{here}'), dict(data_root='no')]), 'no'),
    'prefix': (dict(type='A', data_root='{here}', data_prefix=dict(img_path='yes', seg_map_path='no')), 'no'),
    'split': (dict(type='ImageNet', data_root='{here}', split='train'), 'train'),
    'there': (dict(type='A', data_root='{here}', data_prefix='yes'), None),
    'made_on_first_use': (dict(type='dat_mm.ShapesDetection', data_root='no'), None),
    'remote': (dict(type='A', data_root='s3://no'), None),
}


@pytest.mark.parametrize(('dataset', 'missing'), DATASETS.values(), ids=DATASETS)
def test_all_that_a_data_set_reads_is_looked_for(dataset, missing, tmp_path):
    (tmp_path / 'yes').mkdir()
    dataset = json.loads(json.dumps(dataset).replace('{here}', str(tmp_path)))
    cfg = Config(dict(test_dataloader=dict(dataset=dataset)))
    if missing is None:
        check_data(cfg, ('train', 'val', 'test'))
    else:
        with pytest.raises(UserError, match=f'{missing} does not exist'):
            check_data(cfg, ('train', 'val', 'test'))


@on_cpu
def test_mixed_precision_of_a_config_is_off_on_the_cpu():
    cfg = Config(dict(model={}, optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer={})))
    set_precision(cfg)
    assert cfg.optim_wrapper == dict(type='OptimWrapper', optimizer={})


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_bfloat16_takes_the_kernels_that_have_it(dtype, monkeypatch):
    monkeypatch.setattr('dat_mm.commands.precision.get_device', lambda: 'cuda')
    roi = dict(bbox_roi_extractor=dict(roi_layer=dict(type='RoIAlign', output_size=7)))
    cfg = Config(dict(model=dict(roi_head=[roi]), optim_wrapper=dict(type='OptimWrapper', optimizer={})))
    set_precision(cfg, amp_dtype=dtype)
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype=dtype, optimizer={})
    layer = cfg.model.roi_head[0].bbox_roi_extractor.roi_layer
    assert layer.get('use_torchvision', False) is (dtype == 'bfloat16')


def test_focal_losses_get_float32():
    class FocalLoss(torch.nn.Module):
        def forward(self, pred, target, weight=None):
            return pred.dtype, target.dtype, weight.dtype

    model = torch.nn.Sequential(FocalLoss())
    cast_focal_losses(model)
    half = torch.ones(2, dtype=torch.bfloat16)
    assert model[0](half, half.long(), weight=half) == (torch.float32, torch.int64, torch.float32)


def test_options_are_merged_and_a_new_key_is_told(tiny_config, monkeypatch):
    told = []
    monkeypatch.setattr('dat_mm.commands.config.print_log', lambda message, **_: told.append(message))
    config = tiny_config('mmpretrain')
    assert load_config(config, ['train_cfg.max_epochs=7']).train_cfg.max_epochs == 7
    assert not told
    load_config(config, ['optim_wraper.optimizer.lr=1'])
    assert "has no 'optim_wraper'" in told[0]


def checkpoint(**content):
    return {'meta': {'iter': 4, 'epoch': 1, 'seed': 3}, 'optimizer': {}, 'state_dict': {}, **content}


def test_checkpoints_of_mmengine_are_read_and_others_refused(tmp_path):
    import numpy as np
    from mmengine.logging import MessageHub

    hub = MessageHub('test_checkpoints')
    hub.update_scalar('loss', 0.5)
    hub.update_info('metric', np.float32(0.25))
    torch.save(checkpoint(message_hub=hub.state_dict()), tmp_path / 'good.pth')
    assert read_meta(tmp_path / 'good.pth')['seed'] == 3
    history = open_checkpoint(tmp_path / 'good.pth')['message_hub']['log_scalars']['loss']
    assert history.statistics('mean') == 0.5

    class Code:
        def __reduce__(self):
            return eval, ('1',)

    class Attribute:
        def __reduce__(self):
            return getattr, (MessageHub, 'get_instance')

    for name, content in {'code': checkpoint(x=Code()), 'attribute': checkpoint(x=Attribute())}.items():
        torch.save(content, tmp_path / f'{name}.pth')
        with pytest.raises(UserError, match=r'is refused'):
            open_checkpoint(tmp_path / f'{name}.pth')
    torch.save({'state_dict': {}}, tmp_path / 'weights.pth')
    with pytest.raises(UserError, match='no state of training'):
        read_meta(tmp_path / 'weights.pth')
    (tmp_path / 'text.pth').write_text('{"a": 1}')
    with pytest.raises(UserError, match='is not a checkpoint'):
        read_meta(tmp_path / 'text.pth')
    (tmp_path / 'torn.pth').write_bytes((tmp_path / 'good.pth').read_bytes()[:-40])
    with pytest.raises(UserError, match=r'torn\.pth'):
        read_meta(tmp_path / 'torn.pth')


def test_a_checkpoint_of_another_model_is_refused():
    model = torch.nn.ModuleDict({'backbone': torch.nn.Linear(2, 2), 'head': torch.nn.Linear(2, 2)})
    check_fit(model, {'state_dict': model.state_dict()}, 'a.pth')
    with pytest.raises(UserError, match=r'lacks 2 of its 4 parameters \(head\.weight, head\.bias\)'):
        check_fit(model, {'backbone.weight': 0, 'backbone.bias': 0}, 'a.pth')


def test_the_last_checkpoint_is_found_in_a_folder_that_was_moved(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for name in ('epoch_9.pth', 'epoch_10.pth'):
        torch.save({}, tmp_path / name)
    (tmp_path / 'last_checkpoint').write_text('elsewhere/epoch_9.pth')
    assert latest_checkpoint(tmp_path).name == 'epoch_9.pth'
    (tmp_path / 'last_checkpoint').write_text('elsewhere/epoch_11.pth')  # removed since
    assert latest_checkpoint(tmp_path).name in ('epoch_9.pth', 'epoch_10.pth')


def test_work_dir_validation_and_seed(tiny_config, tmp_path):
    cfg = train_config(tiny_config('mmpretrain'), no_validate=True, seed=5, deterministic=True, tensorboard=True)
    assert cfg.work_dir == 'work_dirs/mmpretrain'
    assert cfg.val_dataloader is cfg.val_cfg is cfg.val_evaluator is None
    assert cfg.randomness == dict(seed=5, deterministic=True)
    assert [backend.type for backend in cfg.visualizer.vis_backends] == ['LocalVisBackend', 'TensorboardVisBackend']
    assert cfg.train_dataloader.collate_fn == ConfigDict(type='default_collate')


def test_no_batch_is_told(tiny_config, tmp_path):
    options = ['train_dataloader.batch_size=64', 'train_dataloader.drop_last=True']
    with pytest.raises(UserError, match='6 samples for each batch of 64 on 1 processes'):
        train(tiny_config('mmpretrain'), work_dir=tmp_path / 'work', cfg_options=options)


@on_cpu
@pytest.mark.skipif(not torch.distributed.is_available(), reason='this PyTorch has no torch.distributed')
def test_the_group_of_processes_ends_with_the_training(tiny_config, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    for key, value in dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1', MASTER_PORT=port).items():
        monkeypatch.setenv(key, str(value))
    train(tiny_config('mmpretrain'), work_dir=tmp_path, launcher='pytorch')
    assert not torch.distributed.is_initialized()
