# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/test.py does: it evaluates a checkpoint on the test data of a config."""

import os
from copy import deepcopy

from mmengine.config import ConfigDict
from mmengine.fileio import dump
from mmengine.model import is_model_wrapper

from ..datasets.survey import leaf_datasets
from ..deploy.runtimes import is_exported, open_exported
from ..deploy.stand_in import prepare_config, stand_in
from ..engine.checkpoints import check_fit, open_checkpoint
from ..engine.processes import leave_group
from ..errors import UserError
from .infer import load_nothing_else
from .prepare import prepare

TTA_MODELS = {
    'mmdet': dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    'mmseg': dict(type='SegTTAModel'),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
}
HOOKS = {'mmdet': 'DetVisualizationHook', 'mmseg': 'SegVisualizationHook', 'mmpretrain': 'VisualizationHook'}
VISUALIZERS = {'mmdet': 'DetLocalVisualizer', 'mmseg': 'SegLocalVisualizer', 'mmpretrain': 'UniversalVisualizer'}
FLIP_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')


def gives_masks(model) -> bool:
    """Says whether the model of a config, one of mmdet's, predicts masks."""
    roi_head = model.get('roi_head') or {}
    return bool(model.get('panoptic_head') or model.get('mask_head') or roi_head.get('mask_head'))


def set_test_time_augmentation(cfg) -> None:
    """Tests with the `tta_model` and `tta_pipeline` of the config, or else on the image and its mirror image."""
    scope, datasets = cfg.default_scope, [*leaf_datasets(cfg.test_dataloader.dataset)]
    if scope == 'mmdet' and 'tta_model' not in cfg and gives_masks(cfg.model):
        raise UserError(f'--tta: {cfg.model.type} predicts masks, and mmdet merges boxes only; test without it')
    if 'tta_pipeline' not in cfg:
        *transforms, pack = deepcopy(datasets[0].pipeline)
        if scope == 'mmdet':
            pack.meta_keys = FLIP_KEYS
        flips = [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)]
        # annotations after the flips: the merged prediction is compared with them as they are
        load = [step for step in transforms if step['type'] == 'LoadAnnotations']
        transforms = [step for step in transforms if step not in load]
        branches = [flips, *([step] for step in load), [pack]]
        cfg.tta_pipeline = [*transforms, dict(type='TestTimeAug', transforms=branches)]
    cfg.model = ConfigDict(**(cfg.get('tta_model') or TTA_MODELS[scope]), module=cfg.model)
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline


def set_drawing(cfg, show: bool, show_dir, wait_time: float, interval: int) -> None:
    """Draws predictions in windows or into a folder, with the toolbox's own hook and visualizer."""
    scope = cfg.default_scope
    if show and os.name == 'posix' and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        raise UserError('--show needs a display; --show-dir DIR writes the pictures')
    hook = cfg.setdefault('default_hooks', ConfigDict()).setdefault('visualization', ConfigDict(type=HOOKS[scope]))
    hook.update(show=show, interval=interval)
    hook['enable' if scope == 'mmpretrain' else 'draw'] = True
    if scope != 'mmpretrain':
        hook.wait_time = wait_time
    visualizer = cfg.setdefault('visualizer', ConfigDict(type='Visualizer'))
    if visualizer.type == 'Visualizer':  # mmengine's default draws no predictions
        visualizer.type = VISUALIZERS[scope]
    if show_dir is not None:
        folder = os.path.abspath(show_dir)
        if scope == 'mmseg':
            visualizer.save_dir = folder
            visualizer.vis_backends = [dict(type='LocalVisBackend')]
        else:
            hook['out_dir' if scope == 'mmpretrain' else 'test_out_dir'] = folder


def test(
    config,
    checkpoint,
    *,
    work_dir=None,
    out=None,
    show=False,
    show_dir=None,
    wait_time=2.0,
    interval=1,
    tta=False,
    beside=None,
    cfg_options=(),
    launcher='none',
    local_rank=0,
):
    """Returns the metrics of a checkpoint, or of an exported file; the options are those of tools/test.py."""
    exported = open_exported(checkpoint) if is_exported(checkpoint) else None
    content = None if exported else open_checkpoint(checkpoint)
    if out is not None and not str(out).endswith(('.json', '.pkl', '.pickle')):
        raise UserError(f'--out {out}: .json for the metrics, .pkl for the predictions')

    def edit(cfg):
        cfg.load_from, cfg.resume = None if exported else str(checkpoint), False
        if exported:
            load_nothing_else(cfg)
            prepare_config(cfg, exported)
        if tta:
            set_test_time_augmentation(cfg)
        if show or show_dir is not None:
            set_drawing(cfg, show, show_dir, wait_time, interval)

    cfg = prepare(
        config,
        cfg_options,
        edit=edit,
        phases=('test',),
        work_dir=work_dir,
        launcher=launcher,
        local_rank=local_rank,
    )
    from ..engine.runner import Runner

    if beside is not None:
        if launcher != 'none':
            raise UserError(f'--beside with --launcher {launcher}: two tests beside each other run in one process')
        options = [*cfg_options, f'test_dataloader.batch_size={cfg.test_dataloader.batch_size}']
        others = test(config, beside, work_dir=work_dir, tta=tta, cfg_options=options)
    runner = Runner.from_cfg(cfg)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    model = getattr(model, 'module', model)  # with --tta, the model inside the wrapper
    if exported:
        stand_in(model, exported)
    else:
        check_fit(model, content, checkpoint)
    predictions = out is not None and not str(out).endswith('.json')
    if predictions:
        runner.test_evaluator.metrics.append(_predictions_to(str(out), cfg.default_scope))
    metrics = runner.test()
    if out is not None and not predictions and runner.rank == 0:
        dump({key: float(value) for key, value in metrics.items()}, str(out), indent=1)
    if beside is not None:
        print_beside(metrics, others, str(checkpoint), str(beside))
    leave_group()
    return metrics


def print_beside(metrics: dict, others: dict, name: str, other_name: str) -> None:
    """Prints the metrics of two tests, and how far apart they are."""
    width = max(map(len, metrics))
    print(f'{name} beside {other_name}:')
    for key, value in metrics.items():
        print(f'  {key:{width}}  {value:9.4f}  {others[key]:9.4f}  {value - others[key]:+.4f}')


def _predictions_to(path, scope):
    """Makes a metric that writes the predictions to a file."""
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(out_file_path=path)
    from mmengine.evaluator import DumpResults

    return DumpResults(out_file_path=path)
