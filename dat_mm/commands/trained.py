# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A trained model of a config, to be exported: the model itself, what it does to pictures, and pictures for it."""

import tempfile
from collections.abc import Iterator

import numpy as np
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS

from ..datasets.survey import leaf_datasets
from ..deploy.pixels import Preprocessing
from ..engine.checkpoints import check_fit
from ..visualize.pictures import find_images
from ..weights import read_state_dict
from .infer import load_nothing_else, open_loadable, trained_meta
from .prepare import prepare


def preprocessing_of(model) -> Preprocessing:
    """What the data preprocessor of a toolbox's model does to a picture at test time."""
    given = model.data_preprocessor
    numbers = {}
    if getattr(given, '_enable_normalize', False):
        numbers = {name: tuple(getattr(given, name).flatten().tolist()) for name in ('mean', 'std')}
    # pictures are read as BGR: a model that turns the channels round wants RGB
    rgb = any(getattr(given, name, False) for name in ('to_rgb', 'channel_conversion', '_channel_conversion'))
    divisor = (getattr(given, 'test_cfg', None) or {}).get('size_divisor') or getattr(given, 'pad_size_divisor', 1)
    return Preprocessing(**numbers, bgr=not rgb, divisor=divisor or 1)


class Trained:
    """A trained model: what it is made of, and pictures for it."""

    def __init__(self, config, checkpoint, cfg_options=(), backbone=False):
        self.cfg = prepare(config, cfg_options, edit=load_nothing_else)
        model = self.cfg.model
        if self.cfg.get('data_preprocessor') and 'data_preprocessor' not in model:
            model.data_preprocessor = self.cfg.data_preprocessor
        self.model = MODELS.build(model)
        self.text = self.cfg.pretty_text
        self.preprocessing = preprocessing_of(self.model)
        with tempfile.TemporaryDirectory() as folder:
            file, content = open_loadable(checkpoint, folder)
            check_fit(self.model, content, checkpoint)
            self.model.load_state_dict(read_state_dict(file), strict=False)
        meta = trained_meta(self.cfg, content)
        self.classes, self.palette = list(meta.get('classes') or []), meta.get('palette')
        if backbone:
            self.model, self.classes = self.model.backbone, []

    @property
    def pipeline(self) -> list:
        """The test pipeline of the config, as dicts."""
        return next(leaf_datasets(self.cfg.test_dataloader.dataset)).pipeline

    def pictures(self, folder=None) -> Iterator[np.ndarray]:
        """Pictures (1, H, W, 3) in RGB after the test pipeline: of a folder, or of the test data by chance."""
        if folder is not None:
            pipeline = Compose([step for step in self.pipeline if 'Annotations' not in step['type']])
            for n, path in enumerate(find_images(folder)):
                yield _pixels(pipeline(dict(img_path=str(path), img_id=n)))
            return
        dataset = DATASETS.build(self.cfg.test_dataloader.dataset)
        for n in np.random.default_rng(0).permutation(len(dataset)):
            yield _pixels(dataset[int(n)])


def _pixels(packed) -> np.ndarray:
    """The picture (1, H, W, 3) in RGB of what a pipeline packs."""
    return np.ascontiguousarray(packed['inputs'].numpy()[::-1].transpose(1, 2, 0)[None])
