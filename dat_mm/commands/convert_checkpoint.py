# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/convert_checkpoint.py does: a checkpoint of the authors becomes one that OpenMMLab's toolboxes load."""

from collections import Counter

from ..convert import convert
from ..weights import read_state_dict, write_state_dict


def convert_checkpoint(src, dst, *, backbone_only=False) -> None:
    """Reads `src`, writes `dst` (.pth or .safetensors) and prints what went into it.

    `backbone_only` writes the keys of the backbone alone, without their prefix.
    """
    official = read_state_dict(src)
    converted = convert(official)
    if backbone_only:
        converted = {k.removeprefix('backbone.'): v for k, v in converted.items() if k.startswith('backbone.')}
    write_state_dict(converted, dst)
    parts = Counter('backbone' if backbone_only else key.split('.')[0] for key in converted)
    numbers = sum(value.numel() for value in converted.values())
    print(f'{src}: {len(official)} tensors -> {dst}: {len(converted)} tensors, {numbers / 1e6:.3f} M numbers')
    print(', '.join(f'{part} {count}' for part, count in parts.items()))
    computed = len(official) - len(converted)
    if computed and not backbone_only:
        print(f'{computed} index and mask buffers left out: the model computes them')
