# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Faults of image files, which are decoded to the last byte."""

import io
import warnings
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from .fault import Fault, read_bytes


def image_faults(path, size=None) -> Iterator[Fault]:
    """Yields what is wrong with an image. `size` is the (width, height) that the annotations say, if they do."""
    image, fault = read_image(path)
    if fault:
        yield fault
    elif size and size != image.shape[1::-1]:
        (width, height), (told_width, told_height) = image.shape[1::-1], size
        what = f'is {width} x {height} pixels, and {told_width} x {told_height} in the annotations'
        yield Fault(str(path), 'image size', what)


def read_image(path) -> tuple[np.ndarray | None, Fault | None]:
    """Decodes an image with Pillow and as training does; returns (image, None), or (None, what is wrong with it).

    Pillow refuses a file that ends too early. Some versions of OpenCV fill such an image up with grey.
    """
    content, fault = read_bytes(path)
    if fault:
        return None, fault
    _, reason = open_with_pillow(content)
    if reason:
        return None, Fault(str(path), 'corrupt image', f'is corrupt or cut off ({reason})')
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)  # turned as the camera was
    except cv2.error:
        image = None
    if image is None:
        return None, Fault(str(path), 'corrupt image', 'is corrupt, or of a format that OpenCV does not read')
    return image, None


def open_with_pillow(content: bytes) -> tuple[np.ndarray | None, str | None]:
    """Decodes an image to its values as they are stored; returns (values, None), or (None, why it cannot be)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(io.BytesIO(content)) as image:
                return np.array(image), None
    except UnidentifiedImageError:
        return None, 'it begins like no image'
    except Image.DecompressionBombError:  # only large, which is no fault; OpenCV has a limit of its own
        return None, None
    except Exception as error:  # Pillow raises many kinds for the many ways to be broken
        return None, (str(error) or type(error).__name__).splitlines()[0]
