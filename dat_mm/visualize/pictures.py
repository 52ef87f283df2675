# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Pictures: those of a folder, the pixels of a file, and what the input of a model looks like."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def find_images(path) -> list[Path]:
    """Lists the picture that a path names, or the pictures in that folder."""
    path = Path(path)
    if not path.exists():
        raise UserError(f'{path}: no such picture or folder')
    if path.is_file():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f'{path} holds no pictures ({", ".join(SUFFIXES)})')
    return found


def read_picture(path) -> np.ndarray:
    """Reads a file as a picture (H, W, 3) of bytes, turned as its EXIF says."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            return np.asarray(ImageOps.exif_transpose(opened).convert('RGB'))
    except FileNotFoundError:
        raise UserError(f'{path}: no such picture') from None
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f'{path} is no picture that can be read: {error}') from error


def picture_of(x) -> np.ndarray:
    """A picture (H, W, 3) of bytes from a picture or from the input of a model, of any kind.

    Bytes are taken as they are. Other numbers, such as normalised pixels, are stretched to the whole range.
    """
    if isinstance(x, Tensor):
        x = x.detach().to(torch.float32 if x.is_floating_point() else x.dtype).cpu().numpy()
    x = np.asarray(x)
    if x.ndim == 4 and len(x) == 1:
        x = x[0]
    if x.ndim == 3 and x.shape[0] in (1, 3) and x.shape[-1] not in (1, 3, 4):
        x = x.transpose(1, 2, 0)
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim != 3 or x.shape[-1] not in (1, 3, 4):
        raise UserError(f'a picture of shape {x.shape} is neither (H, W), (H, W, 3), (H, W, 4) nor (3, H, W)')
    x = np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x[..., :3]
    if x.dtype != np.uint8:
        x = x.astype(float)
        low, high = x.min(), x.max()
        x = ((x - low) / (high - low if high > low else 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(x)
