# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Random textures. Backgrounds and objects of all classes share them, so that no surface tells a class."""

import cv2
import numpy as np


def smooth_noise(rng, height, width, cell):
    """Noise (H, W) in [0, 1], whose features are about `cell` pixels wide."""
    grid = rng.rand(height // cell + 3, width // cell + 3).astype(np.float32)
    field = cv2.resize(grid, (grid.shape[1] * cell, grid.shape[0] * cell), interpolation=cv2.INTER_CUBIC)
    return np.clip(field[cell : cell + height, cell : cell + width], 0, 1)


def _turned_grid(rng, height, width):
    """Coordinates (H, W) along and across a random direction, in periods of 5 to 14 pixels."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    y, x = np.mgrid[:height, :width].astype(np.float32) / np.float32(period)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    shift = rng.rand(2).astype(np.float32)
    return x * cos + y * sin + shift[0], y * cos - x * sin + shift[1]


def _soft_step(wave):
    """The sign of a wave as 0 or 1, with soft edges."""
    return np.clip(wave * 2.5 + 0.5, 0, 1)


def _clouds(rng, height, width):
    return 0.65 * smooth_noise(rng, height, width, 16) + 0.35 * smooth_noise(rng, height, width, 5)


def _grain(rng, height, width):
    return smooth_noise(rng, height, width, 3)


def _stripes(rng, height, width):
    along, _ = _turned_grid(rng, height, width)
    return _soft_step(np.sin(2 * np.pi * along))


def _waves(rng, height, width):
    along, across = _turned_grid(rng, height, width)
    return 0.5 + 0.5 * np.sin(2 * np.pi * along + 1.6 * np.sin(1.7 * np.pi * across))


def _checks(rng, height, width):
    along, across = _turned_grid(rng, height, width)
    return _soft_step(np.sin(np.pi * along) * np.sin(np.pi * across) * 2)


def _dots(rng, height, width):
    along, across = _turned_grid(rng, height, width)
    return _soft_step(1.4 * (0.34 - np.hypot(along % 1 - 0.5, across % 1 - 0.5)) * 2)


PATTERNS = (_clouds, _grain, _stripes, _waves, _checks, _dots)


def random_colour(rng, num=1):
    """Random colours (num, 3), neither very dark nor very bright."""
    return rng.uniform(30, 225, (num, 3))


def paint(rng, height, width, spread, colour):
    """A texture (H, W, 3) of float32 in two colours, `spread` apart and with `colour` halfway between them."""
    pattern = PATTERNS[rng.randint(len(PATTERNS))](rng, height, width).astype(np.float32)[..., None]
    direction = rng.randn(3)
    step = spread * direction / np.linalg.norm(direction)
    return (colour - step / 2).astype(np.float32) + step.astype(np.float32) * pattern
