# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/metafile_entry.py does: the lines about a config that the metafile.yml of its folder wants."""

from pathlib import Path
from typing import NamedTuple

from mmengine.logging import MMLogger

from ..errors import UserError
from ..models import DAT
from .config import load_config
from .get_flops import build_config, count_macs
from .prepare import import_toolbox

GENERATIONS = {'dat': 'DAT', 'datp': 'DAT+', 'datpp': 'DAT++'}
BACKBONES = {'SwinTransformer': 'Swin Transformer', 'ConvNeXt': 'ConvNeXt', 'ResNet': 'ResNet'}


class Data(NamedTuple):
    """Says what the metafiles call a data set, and what their FLOPs are counted for."""

    name: str
    size: tuple[int, int] | None = None  # H, W of the image that FLOPs are of; None: the size of the training


DATA = {
    'ImageNet': Data('ImageNet-1k'),
    'CocoDataset': Data('COCO', (800, 1280)),
    'CocoPanopticDataset': Data('COCO panoptic', (800, 1280)),
    'ADE20KDataset': Data('ADE20K', (512, 2048)),
}
SHAPES = 'dat_mm.Shapes'  # begins the names of the built-in data sets


def collection_of(model) -> str:
    """Names the collection of the metafiles that a model is in: its backbone decides."""
    if isinstance(model.backbone, DAT):
        return GENERATIONS[model.backbone.arch.generation]
    kind = type(model.backbone).__name__
    if kind not in BACKBONES:
        raise UserError(f'backbone {kind} is in no collection: there are DAT, {", ".join(BACKBONES)}')
    return BACKBONES[kind]


def training_size(dataset) -> tuple[int, int]:
    """Reads the size of the pictures that a classifier is trained on from its random crop."""
    (crop,) = (step for step in dataset.pipeline if step['type'] == 'RandomResizedCrop')
    return crop['scale'], crop['scale']


def metadata_of(cfg, model) -> dict:
    """Counts the parameters and FLOPs of a config's model, and reads the rest from the config."""
    dataset, train_cfg = cfg.train_dataloader.dataset, cfg.train_cfg
    batch = {'Batch Size': cfg.auto_scale_lr.base_batch_size}
    parameters = {'Parameters': sum(parameter.numel() for parameter in model.parameters())}
    if dataset.type.startswith(SHAPES):  # models to try out: nobody compares their cost
        return {**parameters, 'Training Data': 'Shapes', **batch}
    if dataset.type not in DATA:
        raise UserError(f'{cfg.filename}: data set {dataset.type} is not one of {", ".join(DATA)}, {SHAPES}...')
    data = DATA[dataset.type]
    macs = count_macs(model, data.size or training_size(dataset))
    length = {'Epochs': train_cfg.max_epochs} if 'max_epochs' in train_cfg else {'Iterations': train_cfg.max_iters}
    return {**parameters, 'FLOPs': int(float(f'{macs:.4g}')), 'Training Data': data.name, **length, **batch}


def entry(config) -> str:
    """Writes the entry of a config, as it stands under `Models:`."""
    path = Path(config).resolve()
    cfg = load_config(config)
    import_toolbox(cfg)
    model = build_config(cfg)
    top = next((folder for folder in path.parents if folder.name == 'configs'), None)
    name = path.relative_to(top.parent) if top else Path(config)
    lines = [
        f'  - Name: {path.stem}',
        f'    In Collection: {collection_of(model)}',
        f'    Config: {name.as_posix()}',
        '    Metadata:',
        *(f'      {key}: {value}' for key, value in metadata_of(cfg, model).items()),
    ]
    return '\n'.join(lines)


def metafile_entry(configs) -> None:
    """Prints the entry of each config: parameters are exact, FLOPs are multiply-adds, rounded to four digits."""
    MMLogger.get_current_instance().setLevel('ERROR')  # what is printed can be pasted
    for config in configs:
        print(entry(config))
