# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Where the decoder of a detection transformer samples: mmcv's multi-scale deformable attention, recorded."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn


def cross_attentions(model: nn.Module) -> dict[str, nn.Module]:
    """Finds the multi-scale deformable attentions of a decoder, by name, without mmcv being imported."""
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ == 'MultiScaleDeformableAttention'
        and {'decoder', 'cross_attn'} <= set(name.split('.'))
    }


@dataclass
class DecoderLayer:
    """What an attention of a decoder sampled: (B, Q, M, L, P) weights, and points in the same shape with (x, y).

    Points and `centres`, (B, Q, 2), the reference points of the queries, are between 0 and 1 over the input.
    """

    points: Tensor
    weights: Tensor
    centres: Tensor

    @classmethod
    def of(cls, module, query, query_pos, reference_points, spatial_shapes) -> 'DecoderLayer':
        """Computes it from the arguments of a call, as the attention itself does."""
        query = query if query_pos is None else query + query_pos
        if not module.batch_first:
            query = query.transpose(0, 1)
        shape = module.num_heads, module.num_levels, module.num_points
        offsets = module.sampling_offsets(query).unflatten(-1, (*shape, 2))
        weights = module.attention_weights(query).unflatten(-1, (shape[0], -1)).softmax(-1)
        reference = reference_points[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
        if reference.shape[-1] == 2:
            offsets = offsets / spatial_shapes.flip(-1)[:, None]
        else:
            offsets = offsets / module.num_points * reference[..., 2:] / 2
        points = reference[..., :2] + offsets
        return cls(points, weights.unflatten(-1, shape[1:]), reference_points[:, :, 0, :2])

    def nearest(self, place: np.ndarray, image: int = 0) -> int:
        """The query whose reference point is nearest to a place (x, y), between 0 and 1 over the input."""
        distances = np.linalg.norm(self.centres[image].cpu().numpy() - place, axis=-1)
        return int(distances.argmin())

    def sampled(self, query: int, image: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The points (N, 2) of a query, their weights (N,), which add up to one, and the level (N,) of each."""
        points, weights = (x[image, query].float().cpu() for x in (self.points, self.weights))
        levels = np.broadcast_to(np.arange(weights.shape[1])[:, None], weights.shape)
        return points.reshape(-1, 2).numpy(), (weights / len(weights)).flatten().numpy(), levels.ravel()
