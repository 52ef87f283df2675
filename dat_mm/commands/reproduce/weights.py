# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Finds the checkpoint of a row among files that were downloaded: by their names, and by what is in them."""

import re
from pathlib import Path

from ...convert import convert, is_official
from ...errors import UserError
from ...weights import read_state_dict

SUFFIXES = ('.pth', '.pt', '.safetensors')
# What a name may say, by kind: what stands for each value in the names of the configs and in the authors' names.
FACETS = {
    'head': {
        'dino': ('dino',),
        'deformable-detr': ('deformable-detr',),
        'mask2former': ('mask2former',),
        'retinanet': ('retinanet', 'rtn'),
        'mask-rcnn': ('mask-rcnn', 'mask_rcnn', 'mrcn', 'maskrcnn'),
        'cascade': ('cascade-mask-rcnn', 'cascade_mask_rcnn', 'cmrcn', 'cascade'),
        'upernet': ('upernet', 'upn'),
        'fpn': ('semantic-fpn', 'semantic_fpn', 'sfpn', 'semfpn'),
    },
    'generation': {'dat': ('dat',), 'datp': ('datp', 'dat_p'), 'datpp': ('datpp', 'dat_pp', 'dat++', 'dat_plus_plus')},
    'size': {'nano': ('nano',), 'tiny': ('tiny', 't'), 'small': ('small', 's'), 'base': ('base', 'b')},
    'task': {'panoptic': ('panoptic',)},
    'schedule': {
        '1x': ('1x',),
        '3x': ('3x',),
        '12e': ('12e',),
        '36e': ('36e',),
        '50e': ('50e',),
        '40k': ('40k',),
        '80k': ('80k',),
        '160k': ('160k',),
    },
    'resolution': {'384': ('384', '384px'), '224': ('224',)},
    'other': {'swin': ('swin',), 'convnext': ('convnext',)},
}
GENERIC = ('generation',)  # a name that says `dat` may well mean DAT++


def facets(name: str) -> dict[str, str]:
    """What a name says of the model: its head, generation, size, schedule, resolution, as far as it says it."""
    text = '_' + re.sub(r'[^a-z0-9+]+', '_', name.lower()) + '_'
    found = {}
    for facet, values in FACETS.items():
        best = ''
        for value, spellings in values.items():
            for spelling in spellings:
                part = '_' + re.sub(r'[^a-z0-9+]+', '_', spelling) + '_'
                if part in text and len(part) > len(best):
                    best, found[facet] = part, value
    return found


def _agree(row: dict, file: dict) -> bool:
    """Says whether a file's name contradicts nothing that a row's says."""
    for facet, value in file.items():
        if facet == 'generation' and value == 'dat':
            continue
        if facet == 'resolution' and value == '224' and facet not in row:
            continue  # of a backbone's pretraining, or the size that goes without saying
        if row.get(facet) != value:
            return False
    return 'head' not in row or 'head' in file or 'resolution' not in file


def fits(path: Path, shapes: dict[str, tuple]) -> str:
    """Says in a few words why a file does not hold all parameters of a model in their shapes, or nothing if it does."""
    try:
        state = read_state_dict(path)
        state = convert(state) if is_official(state) else state
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    missing = [name for name in shapes if name not in state]
    if missing:
        return f'{path.name} lacks {len(missing)} of {len(shapes)} parameters, {missing[0]} among them'
    other = [name for name, shape in shapes.items() if tuple(state[name].shape) != shape]
    if other:
        name = other[0]
        return f'{path.name}: {name} has shape {tuple(state[name].shape)} and not {shapes[name]}'
    return ''


def shapes_of(config) -> dict[str, tuple]:
    """The shapes of the parameters of a config's model, which is built without memory for them."""
    import torch
    from mmengine.registry import MODELS

    from ..config import load_config
    from ..prepare import import_toolbox

    cfg = load_config(config)
    import_toolbox(cfg)
    if cfg.get('data_preprocessor') and cfg.default_scope == 'mmpretrain':
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def find(row, folder: str | Path) -> tuple[Path | None, str]:
    """Finds the checkpoint of a row in a folder; returns it, or None and why there is none.

    A file that is named for the config is taken as it is. Otherwise the name may contradict nothing, and the parameters
    have to fit. Of several, the one is taken whose name says more.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'--weights {folder}: no such folder')
    files = sorted(path for path in folder.rglob('*') if path.suffix in SUFFIXES and path.is_file())
    named = [path for path in files if path.stem == row.name]
    if named:
        reason = fits(named[0], shapes_of(row.config))
        if reason:
            raise UserError(f'{named[0]} is not of {row.config}: {reason}')
        return named[0], ''
    wanted = facets(row.name)
    candidates = [path for path in files if _agree(wanted, facets(path.stem))]
    if not candidates:
        return None, f'no file in {folder} is named for it'
    shapes = shapes_of(row.config)
    reasons = {path: fits(path, shapes) for path in candidates}
    fitting = sorted((path for path in candidates if not reasons[path]), key=lambda path: -len(facets(path.stem)))
    if not fitting:
        return None, reasons[candidates[0]]
    best = [path for path in fitting if len(facets(path.stem)) == len(facets(fitting[0].stem))]
    if len(best) > 1:
        names = ', '.join(str(path) for path in best)
        raise UserError(f'{row.name}: {names} may all be its checkpoint; name the right one {row.name}{best[0].suffix}')
    return best[0], ''
