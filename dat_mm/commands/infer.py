# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/infer.py does: it predicts on pictures with the toolbox's own inferencer, and draws what it finds."""

import json
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from mmengine.device import get_device
from mmengine.registry import DATASETS

from ..convert import convert, is_official
from ..deploy.runtimes import is_exported, open_exported
from ..deploy.stand_in import prepare_config, stand_in
from ..engine.checkpoints import check_fit, open_checkpoint
from ..errors import UserError
from ..visualize.pictures import find_images
from ..weights import read_state_dict, write_state_dict
from .config import nodes
from .prepare import prepare


def load_nothing_else(cfg) -> None:
    """Removes the weights that a config starts from: the checkpoint holds all of them."""
    for node in nodes(cfg.model):
        if 'init_cfg' in node:
            node['init_cfg'] = None
    cfg.load_from = None


def dataset_meta(cfg) -> dict:
    """Returns the classes and colours of the test data, without reading the data."""
    dataset = dict(cfg.test_dataloader.dataset, lazy_init=True)
    return {key.lower(): value for key, value in DATASETS.build(dataset).metainfo.items()}


def trained_meta(cfg, content: dict) -> dict:
    """Returns the classes and colours of the test data, or what a checkpoint says that it was trained on."""
    told = content.get('meta', {}).get('dataset_meta', {})
    return dataset_meta(cfg) | {key.lower(): value for key, value in told.items()}


def _plain(value):
    """Turns what a toolbox predicts into what JSON can hold: numbers, strings, lists and dicts."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value.decode() if isinstance(value, bytes) else value


class Detector:
    """Predicts boxes, masks and scores, and keeps those whose score reaches a threshold.

    Each predictor is called with a picture and the file that it will be drawn to, and returns both the drawn picture
    and what it found. `sample` gives the toolbox's own data sample of a picture, and draws nothing.
    """

    def __init__(self, cfg, checkpoint, device, meta, score_thr):
        from mmdet.apis import DetInferencer

        self.inferencer = DetInferencer(cfg, checkpoint, device=device, show_progress=False)
        self.inferencer.model.dataset_meta = self.inferencer.visualizer.dataset_meta = meta
        self.meta, self.score_thr = meta, score_thr

    def sample(self, image):
        return self.inferencer(str(image), return_datasamples=True, no_save_vis=True, no_save_pred=True)['predictions'][
            0
        ]

    def __call__(self, image, out_file):
        result = self.inferencer(
            str(image), return_vis=True, no_save_vis=True, no_save_pred=True, pred_score_thr=self.score_thr
        )
        found = result['predictions'][0]
        kept = [i for i, score in enumerate(found['scores']) if score >= self.score_thr]
        found = {key: [values[i] for i in kept] for key, values in found.items() if isinstance(values, list)}
        found['classes'] = [self.meta['classes'][label] for label in found['labels']]
        return result['visualization'][0], found


class Segmentor:
    """Predicts a class for each pixel; the map of labels is a PNG of its own, the JSON has the share of each class."""

    def __init__(self, cfg, checkpoint, device, meta, score_thr):
        from mmseg.apis import MMSegInferencer

        self.inferencer = MMSegInferencer(cfg, checkpoint, device=device)
        self.inferencer.model.dataset_meta = {key: meta.get(key) for key in ('classes', 'palette')}
        self.meta = meta

    def sample(self, image):
        return self.inferencer(str(image), return_datasamples=True)

    def __call__(self, image, out_file):
        from PIL import Image

        result = self.inferencer(str(image), return_vis=True)
        labels = np.asarray(result['predictions'])
        path = out_file.with_name(f'{out_file.stem}_labels.png')
        Image.fromarray(labels.astype(np.uint8)).save(path)
        numbers, counts = np.unique(labels, return_counts=True)
        shares = {self.meta['classes'][n]: count / labels.size for n, count in zip(numbers, counts, strict=True)}
        return result['visualization'], {'labels': path.name, 'shares': shares}


class Classifier:
    """Predicts the five likeliest classes with their scores."""

    def __init__(self, cfg, checkpoint, device, meta, score_thr):
        from mmpretrain import ImageClassificationInferencer
        from mmpretrain.visualization import UniversalVisualizer

        self.inferencer = ImageClassificationInferencer(cfg, checkpoint, device=device)
        self.visualizer = UniversalVisualizer()
        self.classes = meta.get('classes') or self.inferencer.classes

    def sample(self, image):
        return self.inferencer(str(image), return_datasamples=True)[0]

    def __call__(self, image, out_file):
        import mmcv

        (found,) = self.inferencer(str(image), return_datasamples=True)
        scores = found.pred_score.cpu()
        classes = self.classes or [str(i) for i in range(len(scores))]
        best = [
            {'class': classes[i], 'label': i, 'score': scores[i].item()}
            for i in scores.argsort(descending=True)[:5].tolist()
        ]
        picture = mmcv.imread(str(image), channel_order='rgb')
        side = max(224, min(picture.shape[:2]))  # a small picture would be under its caption
        return self.visualizer.visualize_cls(picture, found, classes, resize=side, draw_gt=False), {'top': best}


PREDICTORS = {'mmdet': Detector, 'mmseg': Segmentor, 'mmpretrain': Classifier}


def as_palette(colours):
    """Returns the colours of the classes as mmdet draws them: it takes a tuple for one colour."""
    if colours is None:
        return 'random'
    return list(colours) if isinstance(colours, tuple) and not isinstance(colours[0], int) else colours


def open_loadable(checkpoint, folder) -> tuple[Path, dict]:
    """Opens a checkpoint as the toolboxes load it, and returns its file and content.

    One of the authors is converted into a file in `folder`. Only such a file is read whole here.
    """
    content = open_checkpoint(checkpoint)
    if not is_official(next((content[key] for key in ('state_dict', 'model') if key in content), content)):
        return Path(checkpoint), content
    try:
        weights = convert(read_state_dict(checkpoint))
    except ValueError as error:
        raise UserError(str(error)) from error
    path = Path(folder, f'{Path(checkpoint).stem}.pth')
    write_state_dict(weights, path)
    return path, open_checkpoint(path)


def load_predictor(config, checkpoint, *, device=None, score_thr=0.3, cfg_options=(), edit=None):
    """Makes the predictor of a config's toolbox with the weights of a checkpoint, which may be one of the authors'.

    An exported file does as well as a checkpoint. `edit` is called with the config before anything is built from it.
    """
    exported = open_exported(checkpoint) if is_exported(checkpoint) else None

    def edit_all(cfg):
        load_nothing_else(cfg)
        if exported:
            prepare_config(cfg, exported)
        if edit is not None:
            edit(cfg)

    matplotlib.use('Agg')
    with tempfile.TemporaryDirectory() as folder:
        file, content = (None, {}) if exported else open_loadable(checkpoint, folder)
        cfg = prepare(config, cfg_options, edit=edit_all)
        meta = trained_meta(cfg, content)
        meta['palette'] = as_palette(meta.get('palette'))
        if exported:
            meta['classes'] = tuple(exported.metadata['classes'])
        file = None if file is None else str(file)
        predict = PREDICTORS[cfg.default_scope](cfg, file, device or get_device(), meta, score_thr)
        if exported:
            stand_in(predict.inferencer.model, exported)
        else:
            check_fit(predict.inferencer.model, content, checkpoint)
    return predict


def infer(image, config, checkpoint, *, out_dir='predictions', device=None, score_thr=0.3, cfg_options=()):
    """Writes drawn pictures and predictions.json into `out_dir`, and returns the predictions by file name."""
    images = find_images(image)
    predict = load_predictor(config, checkpoint, device=device, score_thr=score_thr, cfg_options=cfg_options)

    import mmcv

    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    predictions = {}
    for path in images:
        out_file = folder / f'{path.stem}.png'
        drawn, predictions[path.name] = predict(path, out_file)
        mmcv.imwrite(np.ascontiguousarray(drawn[..., ::-1]), str(out_file))
    lines = (f'{json.dumps(name)}: {json.dumps(_plain(found))}' for name, found in predictions.items())
    (folder / 'predictions.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')
    print(f'{len(images)} pictures and predictions.json in {folder}')
    return predictions
