# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Converts the authors' DAT and DAT++ checkpoints for mmpretrain, mmdet 3 and mmseg 1."""

import argparse
import sys
from collections import Counter

from dat_mm.convert import convert
from dat_mm.weights import read_state_dict, write_state_dict


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='official checkpoint: classification, detection or segmentation')
    parser.add_argument('dst', help='file to write, .pth or .safetensors')
    parser.add_argument('--backbone-only', action='store_true', help="only the backbone, its keys without 'backbone.'")
    args = parser.parse_args()
    try:
        official = read_state_dict(args.src)
        converted = convert(official)
        if args.backbone_only:
            converted = {k.removeprefix('backbone.'): v for k, v in converted.items() if k.startswith('backbone.')}
        write_state_dict(converted, args.dst)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    parts = Counter('backbone' if args.backbone_only else key.split('.')[0] for key in converted)
    numbers = sum(value.numel() for value in converted.values())
    print(f'{args.src}: {len(official)} tensors -> {args.dst}: {len(converted)} tensors, {numbers / 1e6:.3f} M numbers')
    print(', '.join(f'{part} {count}' for part, count in parts.items()))
    computed = len(official) - len(converted)
    if computed and not args.backbone_only:
        print(f'{computed} index and mask buffers left out: the model computes them')


if __name__ == '__main__':
    main()
