# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Prints the parameters and multiply-adds of an arch, or of the model of a config, by stage.

Attention is counted whatever the backend. A config's model runs once, on random pixels; an arch, with the head of
ImageNet, is only traced.
"""

import argparse
import sys
from pathlib import Path

import torch

from dat_mm import ARCHS, DAT
from dat_mm.complexity import Classifier, count_parts, table


def count_arch(arch, shape, **options):
    with torch.device('meta'):
        return count_parts(Classifier(DAT(arch, **options)), torch.empty(1, 3, *shape))


def count_config(path, shape):
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope

    config = Config.fromfile(path)
    init_default_scope(config.get('default_scope', 'dat_mm'))
    model = config.model
    if 'init_cfg' in model.get('backbone', {}):
        model.backbone.init_cfg = None
    model = revert_sync_batchnorm(MODELS.build(model))
    if not hasattr(model, 'backbone') or not hasattr(model.backbone, 'arch'):
        raise ValueError(f'{path}: its model has no DAT backbone')
    return count_parts(model, torch.rand(1, 3, *shape))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', metavar='ARCH_OR_CONFIG', help=f'{", ".join(ARCHS)}, or a config file')
    parser.add_argument(
        '--shape', type=int, nargs='+', default=[224], metavar='N', help='H W of the input, or one side'
    )
    parser.add_argument('--img-size', type=int, nargs='+', help='training resolution of an arch; default 224')
    parser.add_argument('--window-size', type=int, help='of an arch; 12 for dat-base at 384')
    args = parser.parse_args(argv)
    if len(args.shape) > 2:
        parser.error(f'--shape takes one or two numbers, not {args.shape}')
    shape = args.shape * 2 if len(args.shape) == 1 else args.shape
    try:
        if Path(args.model).suffix == '.py':
            parts = count_config(args.model, shape)
        else:
            options = {'window_size': args.window_size}
            if args.img_size:
                options['img_size'] = args.img_size[0] if len(args.img_size) == 1 else tuple(args.img_size)
            parts = count_arch(args.model, shape, **options)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(f'{args.model}, one image of {shape[0]}x{shape[1]}')
    print(table(parts))


if __name__ == '__main__':
    main()
