# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Converts the authors' checkpoints (classification, detection, segmentation) to the keys of OpenMMLab's models."""

import re
from collections.abc import Mapping

from torch import Tensor

_BLOCK = r'stages\.(\d+)\.%s\.(\d+)\.'
_ATTN = _BLOCK % 'attns'
_OURS = r'stages.\1.blocks.\2.'

# Official key of the backbone -> our key. The first pattern that matches the whole key wins.
BACKBONE_KEYS = (
    (r'patch_proj\.0\.(.*)', r'stem.conv.\1'),
    (r'patch_proj\.1\.norm\.(.*)', r'stem.norm.\1'),
    (r'patch_proj\.3\.(.*)', r'stem.conv2.\1'),
    (r'patch_proj\.4\.norm\.(.*)', r'stem.norm2.\1'),
    (r'down_projs\.(\d+)\.0\.(.*)', r'downsamples.\1.conv.\2'),
    (r'down_projs\.(\d+)\.1\.norm\.(.*)', r'downsamples.\1.norm.\2'),
    (r'norms\.(\d+)\.norm\.(.*)', r'norm\1.\2'),
    (r'cls_norm\.norm\.(.*)', r'norm3.\1'),
    (_BLOCK % 'local_perception_units' + '(.*)', _OURS + r'local_perception.\3'),
    # layer_norms.2d stands before the attention of block d, 2d+1 before its MLP
    (
        _BLOCK % 'layer_norms' + r'norm\.(.*)',
        lambda m: f'stages.{m[1]}.blocks.{int(m[2]) // 2}.norm{int(m[2]) % 2 + 1}.{m[3]}',
    ),
    (_BLOCK % 'ln_cnvnxt' + r'norm\.(.*)', _OURS + r'norm2.\3'),  # kind X: its norm before the MLP
    (_BLOCK % 'mlps' + r'chunk\.(linear[12]\..*)', _OURS + r'mlp.\3'),
    (_BLOCK % 'mlps' + r'(linear[12])\.0\.(.*)', _OURS + r'mlp.\3.\4'),
    (_BLOCK % 'mlps' + r'dwc\.(.*)', _OURS + r'mlp.conv.\3'),
    (_ATTN + '(weight|bias)', _OURS + r'conv.\3'),  # X
    (_ATTN + 'rpb', _OURS + 'attn.neighborhood_bias_table'),  # N
    (_ATTN + r'proj_qkv\.(.*)', _OURS + r'attn.qkv.\3'),  # L, S
    (_ATTN + r'proj_out\.(.*)', _OURS + r'attn.proj_out.\3'),  # L, S, D
    (_ATTN + r'q\.(.*)', _OURS + r'attn.proj_q.\3'),  # P
    (_ATTN + r'kv\.(.*)', _OURS + r'attn.proj_kv.\3'),
    (_ATTN + r'proj_ds\.0\.(.*)', _OURS + r'attn.reduce.\3'),
    (_ATTN + r'proj_ds\.1\.norm\.(.*)', _OURS + r'attn.reduce_norm.\3'),
    (_ATTN + r'proj\.(.*)', _OURS + r'attn.proj_out.\3'),  # N, P
    (_ATTN + r'conv_offset\.0\.(.*)', _OURS + r'attn.offset_net.conv.\3'),  # D
    (_ATTN + r'conv_offset\.1\.norm\.(.*)', _OURS + r'attn.offset_net.norm.\3'),
    (_ATTN + r'conv_offset\.3\.(.*)', _OURS + r'attn.offset_net.proj.\3'),
    (_ATTN + 'rpe_table', _OURS + 'attn.position_bias.table'),  # relative, fixed
    (_ATTN + r'rpe_table\.(weight|bias)', _OURS + r'attn.position_bias.conv.\3'),  # depthwise
    (_ATTN + r'rpe_table\.(\d+\..*)', _OURS + r'attn.position_bias.mlp.\3'),  # log
    (_ATTN + '(relative_position_bias_table|qkv\\..*|proj_[qkv]\\..*)', _OURS + r'attn.\3'),
)
_PATTERNS = tuple((re.compile(pattern), ours) for pattern, ours in BACKBONE_KEYS)
_HEAD = {'cls_head.weight': 'head.fc.weight', 'cls_head.bias': 'head.fc.bias'}
_KEPT = ('neck.', 'rpn_head.', 'roi_head.', 'bbox_head.', 'mask_head.', 'decode_head.', 'auxiliary_head.')
# Buffers in the files. The model computes its own.
_COMPUTED = ('.relative_position_index', '.attn_mask')
_MARK = 'patch_proj.0.weight'  # a key that every official file has, and no other
_LINEAR = re.compile(r'.*\.(linear[12]|qkv|proj\w*)\.weight')  # 1x1 convolutions in the files, linear layers here


def rename(key: str) -> str | None:
    """Our key for an official key of the backbone, both without 'backbone.', or None if the key is unknown."""
    for pattern, ours in _PATTERNS:
        if match := pattern.fullmatch(key):
            return ours(match) if callable(ours) else match.expand(ours)
    return None


# Keys of this package before its position biases were modules of their own; the windows' tables keep theirs.
_OLD = re.compile(r'(^|\.)position_bias_(table|conv|mlp)(?=$|\.)')


def current_key(key: str) -> str:
    """A key of an earlier version of this package as it is now."""
    return _OLD.sub(r'\1position_bias.\2', key)


def rename_old_keys(state_dict: dict, prefix: str = '', *_) -> None:
    """Gives the keys of an earlier version below a prefix their present names, in place.

    It is a hook of load_state_dict too, which passes more than it needs.
    """
    for key in [key for key in state_dict if key.startswith(prefix) and current_key(key) != key]:
        state_dict[current_key(key)] = state_dict.pop(key)


def is_official(state_dict: Mapping) -> bool:
    """Whether the keys are those of the authors' files."""
    return _MARK in state_dict or f'backbone.{_MARK}' in state_dict


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives an official state dict the keys and shapes of an OpenMMLab model.

    That is mmpretrain's ImageClassifier, an mmdet 3 detector or an mmseg 1 segmentor. Values are only renamed and
    reshaped, so gradients can be converted too.
    """
    if not is_official(state_dict):
        first = ', '.join(list(state_dict)[:3])
        raise ValueError(
            f'not an official DAT checkpoint: none of its {len(state_dict)} keys is {_MARK!r} ({first}, ...)'
        )
    dense = _MARK not in state_dict
    converted, unknown = {}, []
    for key, value in state_dict.items():
        if key.endswith(_COMPUTED):
            continue
        if dense and key.startswith(_KEPT):
            ours = key
        elif not dense and key in _HEAD:
            ours = _HEAD[key]
        elif dense and not key.startswith('backbone.'):
            ours = None
        else:
            ours = rename(key.removeprefix('backbone.') if dense else key)
            ours = ours and f'backbone.{ours}'
        if ours is None:
            unknown.append(key)
            continue
        if value.ndim == 4 and ours.startswith('backbone.') and _LINEAR.fullmatch(ours):
            value = value.flatten(1)
        converted[ours] = value
    if unknown:
        raise ValueError(f'{len(unknown)} keys are of no official checkpoint: {", ".join(unknown)}')
    return converted
