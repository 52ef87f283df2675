# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/browse_data.py does: it draws the batches that a model gets, after all augmentation."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from mmengine.registry import MODELS, VISUALIZERS
from mmengine.runner import Runner, set_random_seed

from ..datasets.survey import leaf_datasets
from ..errors import UserError
from .prepare import prepare


def to_picture(image, preprocessor) -> np.ndarray:
    """Turns the (C, H, W) that a model gets back into an RGB picture, (H, W, 3) of uint8."""
    if getattr(preprocessor, 'mean', None) is not None:
        image = image * preprocessor.std + preprocessor.mean
    # mmdet, mmseg and mmpretrain name it differently
    flags = ('_channel_conversion', 'channel_conversion', 'to_rgb')
    picture = image.permute(1, 2, 0).clamp(0, 255).round().to(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(picture if any(getattr(preprocessor, f, False) for f in flags) else picture[..., ::-1])


def annotates_the_original(loader_cfg) -> bool:
    """Says whether the pipeline resizes the image before it loads annotations, which then fit the original image."""
    dataset = next(leaf_datasets(loader_cfg.dataset))
    steps = [str(step['type']) for step in dataset.get('pipeline', [])]
    loads = [i for i, step in enumerate(steps) if step.endswith('LoadAnnotations')]
    return bool(loads) and any('Resize' in step for step in steps[: loads[0]])


def to_original(picture, sample) -> np.ndarray:
    """Cuts the padding off a picture and resizes it to the size of its file."""
    import mmcv

    (height, width), (original_height, original_width) = sample.img_shape[:2], sample.ori_shape[:2]
    return mmcv.imresize(picture[:height, :width], (original_width, original_height))


def draw_detection(visualizer, name, picture, sample, meta, out_file):
    boxes = sample.gt_instances.bboxes
    sample.gt_instances.bboxes = getattr(boxes, 'tensor', boxes)
    visualizer.add_datasample(name, picture, sample, draw_gt=True, draw_pred=False, out_file=out_file)


def draw_segmentation(visualizer, name, picture, sample, meta, out_file):
    visualizer.add_datasample(name, picture, sample, draw_gt=True, draw_pred=False, out_file=out_file)


def draw_classification(visualizer, name, picture, sample, meta, out_file):
    classes = list(meta.get('classes') or map(str, range(sample.get('num_classes') or 10000)))
    if 'gt_score' in sample:  # mixed with another picture: every class with its share
        labels = sample.gt_score.topk(min(2, len(sample.gt_score))).indices
        labels = labels[sample.gt_score[labels] > 0.005]
        for i in labels.tolist():
            classes[i] = f'{classes[i]} {100 * sample.gt_score[i]:.0f}%'
        sample.set_gt_label(labels)
    resize = max(224, *picture.shape[:2])
    visualizer.visualize_cls(picture, sample, classes, resize=resize, draw_pred=False, name=name, out_file=out_file)


DRAW = {
    'mmdet': ('DetLocalVisualizer', draw_detection),
    'mmseg': ('SegLocalVisualizer', draw_segmentation),
    'mmpretrain': ('UniversalVisualizer', draw_classification),
}


def browse_data(config, *, out_dir=None, number=16, phase='train', seed=0, cfg_options=()):
    """Writes `number` pictures of what `phase` feeds the model into `out_dir`, and returns their paths."""
    matplotlib.use('Agg')
    if number < 1:
        raise UserError(f'--number {number}: at least 1')

    def edit(cfg):
        loader = cfg[f'{phase}_dataloader']
        loader.num_workers = 0
        loader.batch_size = min(loader.get('batch_size', 1), number)

    cfg = prepare(config, cfg_options, edit=edit, phases=(phase,))
    loader_cfg = cfg[f'{phase}_dataloader']
    set_random_seed(seed)
    loader = Runner.build_dataloader(loader_cfg, seed=seed)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    preprocessor = MODELS.build(cfg.model).data_preprocessor
    set_random_seed(seed)

    kind, draw = DRAW[cfg.default_scope]
    visualizer = VISUALIZERS.build(dict(type=kind, name='browse', vis_backends=[], save_dir=None))
    meta = {key.lower(): value for key, value in getattr(loader.dataset, 'metainfo', {}).items()}
    visualizer.dataset_meta = meta
    folder = Path(out_dir or Path('work_dirs', 'browse', Path(config).stem, phase))
    folder.mkdir(parents=True, exist_ok=True)
    original = annotates_the_original(loader_cfg)
    written = []
    for batch in loader:
        fed = preprocessor(batch, training=phase == 'train')
        for image, sample in zip(fed['inputs'], fed['data_samples'], strict=True):
            name = Path(sample.get('img_path') or 'picture').stem
            path = folder / f'{len(written):04d}_{name}.png'
            picture = to_picture(image, preprocessor)
            draw(visualizer, name, to_original(picture, sample) if original else picture, sample, meta, str(path))
            written.append(path)
            if len(written) == number:
                break
        if len(written) == number:
            break
    print(f'{len(written)} pictures in {folder}')
    return written
