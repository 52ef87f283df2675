# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Drawing a synthetic scene: a background, objects that lie one over the other, light and noise."""

from dataclasses import dataclass

import cv2
import numpy as np

from .classes import CLASSES
from .outlines import place_outline
from .textures import paint, random_colour, smooth_noise

MIN_AREA = 100  # of an object in pixels, before another hides a part of it
MAX_SHARE = 0.4  # of the image that an object covers


@dataclass(frozen=True)
class Difficulty:
    """What a difficulty between 0 (easy) and 1 (hard) means for a scene."""

    contrast: float  # least distance of the colour of an object from the mean of what it covers
    spread: float  # distance between the two colours of a texture
    noise: float  # its standard deviation; pixels go to 255
    visible: float  # least part of an object that is seen
    strokes: int  # largest number of unlabelled lines in the background

    @classmethod
    def of(cls, level):
        if not 0 <= level <= 1:
            raise ValueError(f'difficulty={level} is not between 0 and 1')
        return cls(100 - 70 * level, 20 + 60 * level, 2 + 12 * level, 0.8 - 0.45 * level, round(8 * level))


@dataclass
class Scene:
    """A scene and the truth about it. The owner of a pixel is 0, the background, or the number of an object from 1."""

    image: np.ndarray  # (H, W, 3) uint8, BGR
    owner: np.ndarray  # (H, W) uint8
    labels: list  # index into CLASSES of each object
    crowd: list  # whether the object is a heap of small ones
    shown: list  # part of each object that is seen, 0 to 1

    def mask(self, index):
        """The pixels (H, W) of an object, counted from 0."""
        return self.owner == index + 1


def _rasterise(contours, height, width, fine=4):
    """How much of each pixel an outline covers, (h, w) in [0, 1], and the window's corner (y, x).

    The window is cut at the border of the image; None where almost nothing is left of it.
    """
    points = np.concatenate(contours)
    x0, y0 = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, (width, height))
    if x1 - x0 < 2 or y1 - y0 < 2:
        return None
    canvas = np.zeros(((y1 - y0) * fine, (x1 - x0) * fine), np.uint8)
    # pixel (0, 0) spans [0, 1): its fine cells have their centres at (i + 0.5) / fine
    grid = [np.round(((contour - (x0, y0)) * fine - 0.5) * 16).astype(np.int32) for contour in contours]
    cv2.fillPoly(canvas, grid, 255, shift=4)
    cover = cv2.resize(canvas, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return cover.astype(np.float32) / 255, (y0, x0)


class _Painter:
    """Draws objects on a canvas and keeps account of which pixel belongs to which object."""

    def __init__(self, rng, height, width, level):
        self.rng, self.height, self.width, self.level = rng, height, width, level
        self.canvas = self._background()
        self.owner = np.zeros((height, width), np.uint8)
        self.labels, self.crowd, self.full = [], [], []
        self.light = rng.uniform(0, 2 * np.pi)

    def _background(self):
        rng, height, width = self.rng, self.height, self.width
        canvas = paint(rng, height, width, self.level.spread, random_colour(rng)[0])
        edge = smooth_noise(rng, height, width, rng.randint(40, 90))
        blend = np.clip((edge - rng.uniform(0.3, 0.7)) * 12 + 0.5, 0, 1)[..., None]
        other = paint(rng, height, width, self.level.spread, random_colour(rng)[0])
        canvas += (other - canvas) * blend.astype(np.float32)
        for _ in range(rng.randint(self.level.strokes + 1)):
            ends = rng.uniform(-0.2, 1.2, (3, 1, 2)) * (width, height)
            t = np.linspace(0, 1, 24)[:, None]
            curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
            colour = rng.uniform(20, 235, 3)
            points = np.round(curve * 16).astype(np.int32)
            cv2.polylines(canvas, [points], False, colour.tolist(), rng.randint(1, 4), cv2.LINE_8, 4)
        return canvas

    def visible(self):
        """The number of pixels that are seen of each object."""
        return np.bincount(self.owner.ravel(), minlength=len(self.labels) + 1)[1:]

    def try_place(self, label, outlines, area, crowd=False):
        """Draw an object of one or more outlines and return whether there was a place for it.

        It must not be cut off by the border, nor hide too much of another object.
        """
        covers = [_rasterise(outline, self.height, self.width) for outline in outlines]
        covers = [cover for cover in covers if cover is not None]
        mask = np.zeros((self.height, self.width), bool)
        for cover, (y, x) in covers:
            mask[y : y + cover.shape[0], x : x + cover.shape[1]] |= cover > 0.5
        inside = int(mask.sum())
        if inside < max(self.level.visible, 0.5) * area:
            return False
        lost = np.bincount(self.owner[mask], minlength=len(self.labels) + 1)[1:]
        least = np.maximum(self.level.visible * np.array(self.full), 0.5 * MIN_AREA)
        if ((self.visible() - lost < least) & (lost > 0)).any():
            return False
        for cover, window in covers:
            self._draw(cover, window)
        self.labels.append(label)
        self.crowd.append(crowd)
        self.full.append(max(area, inside))
        self.owner[mask] = len(self.labels)
        return True

    def _draw(self, cover, window):
        y, x = window
        height, width = cover.shape
        region = self.canvas[y : y + height, x : x + width]
        below = (region * cover[..., None]).sum(axis=(0, 1)) / max(float(cover.sum()), 1)
        colours = random_colour(self.rng, 8)
        distances = np.linalg.norm(colours - below, axis=1)
        enough = np.flatnonzero(distances >= self.level.contrast)
        colour = colours[enough[0] if len(enough) else distances.argmax()]
        surface = paint(self.rng, height, width, self.level.spread, colour)
        self._cast_shadow(cover, window)
        region += (surface - region) * cover[..., None]

    def _cast_shadow(self, cover, window, reach=3):
        """Darken the canvas beside an object, on the side away from the light."""
        y, x = window
        dx, dy = round(2 * np.cos(self.light)), round(2 * np.sin(self.light))
        shadow = cv2.GaussianBlur(cv2.copyMakeBorder(cover, *[reach + 2] * 4, cv2.BORDER_CONSTANT), (0, 0), 1.5)
        top, left = y + dy - reach - 2, x + dx - reach - 2
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + shadow.shape[0], self.height), min(left + shadow.shape[1], self.width)
        if y1 > y0 and x1 > x0:
            shadow = shadow[y0 - top : y1 - top, x0 - left : x1 - left, None]
            self.canvas[y0:y1, x0:x1] *= 1 - 0.45 * shadow

    def finish(self):
        """The image (H, W, 3) of uint8: the canvas with light from one side, a slight blur and noise."""
        rng, canvas = self.rng, self.canvas
        y, x = np.mgrid[: self.height, : self.width].astype(np.float32) / max(self.height, self.width) - 0.5
        slope = rng.uniform(0, 0.35)
        canvas *= (1 - slope * (x * np.cos(self.light) + y * np.sin(self.light)))[..., None].astype(np.float32)
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.7))
        noise = np.frombuffer(rng.bytes(canvas.size), np.uint8).reshape(canvas.shape).astype(np.float32)
        # random bytes have a standard deviation of 74
        canvas += (noise - 127.5) * np.float32(self.level.noise * rng.uniform(0.5, 1) / 74)
        return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _random_outline(rng, label, area, centre):
    stretch = np.exp(rng.uniform(-0.2, 0.2))
    return place_outline(CLASSES[label], area, rng.uniform(0, 2 * np.pi), stretch, rng.uniform(-0.2, 0.2), centre)


def _random_centre(rng, painter, objects):
    """A place for an object: anywhere, or one time in three beside another object, so that things overlap."""
    size = np.array([painter.width, painter.height])
    if objects and rng.rand() < 0.35:
        centre, area = objects[rng.randint(len(objects))]
        angle = rng.uniform(0, 2 * np.pi)
        centre = centre + np.sqrt(area) * rng.uniform(0.3, 1.0) * np.array([np.cos(angle), np.sin(angle)])
        return np.clip(centre, 0.03 * size, 0.97 * size)
    return rng.uniform(0.03, 0.97, 2) * size


def draw_scene(rng, height, width, difficulty=0.3, tries=12):
    """Draw a scene of two to six objects, and now and then a crowd.

    Their areas go from 100 pixels to 40 % of the image, on a log scale. Each is tried at `tries` places.
    """
    painter = _Painter(rng, height, width, Difficulty.of(difficulty))
    count = rng.randint(2, 7)
    low, high = np.log(MIN_AREA), np.log(MAX_SHARE * height * width)
    areas = np.exp(low + (high - low) * rng.beta(2.4, 1.7, count))
    # mostly the large ones first, as they would seldom find a place later
    areas = areas[np.argsort(-np.log(areas) + 0.7 * rng.randn(count))]
    objects = []
    for area in areas:
        label = rng.randint(len(CLASSES))
        for _ in range(tries):
            centre = _random_centre(rng, painter, objects)
            if painter.try_place(label, [_random_outline(rng, label, area, centre)], area):
                objects.append((centre, area))
                break
    if rng.rand() < 0.15 or not objects:
        _place_crowd(rng, painter, tries)
    shown = painter.visible() / np.array(painter.full)
    return Scene(painter.finish(), painter.owner, painter.labels, painter.crowd, shown.tolist())


def _place_crowd(rng, painter, tries):
    """Draw a heap of eight to fourteen small objects of one class, which cannot be told apart."""
    label = rng.randint(len(CLASSES))
    for _ in range(tries):
        middle = rng.uniform(0.2, 0.8, 2) * (painter.width, painter.height)
        centres = middle + rng.randn(rng.randint(8, 15), 2) * 0.07 * min(painter.width, painter.height)
        outlines = [_random_outline(rng, label, rng.uniform(0.6, 1.5) * MIN_AREA, centre) for centre in centres]
        if painter.try_place(label, outlines, area=4 * MIN_AREA, crowd=True):
            return
