# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The outlines of the eight classes of Shapes. Nothing else tells the classes apart."""

import numpy as np


def _arc(radius, start, stop, num=40):
    """Points (num, 2) on a circle around the origin, between two angles in degrees."""
    angle = np.radians(np.linspace(start, stop, num))
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star():
    """A star of five points."""
    radius = np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
    return radius * _arc(1.0, 0, 324, 10)


def _crescent():
    """A disc of radius 1 without the disc of radius 0.85 whose centre lies 0.55 to the right."""
    x = (1 + 0.55**2 - 0.85**2) / (2 * 0.55)
    outer = np.degrees(np.arccos(x))
    inner = np.degrees(np.arccos((x - 0.55) / 0.85))
    bite = _arc(0.85, 360 - inner, inner) + np.array([0.55, 0])
    return np.concatenate([_arc(1.0, outer, 360 - outer), bite])


def _cross(arm=0.36):
    """A cross in a square of side 2, whose arms are `2 * arm` wide."""
    a, b = arm, 1.0
    return [
        (a, a),
        (b, a),
        (b, -a),
        (a, -a),
        (a, -b),
        (-a, -b),
        (-a, -a),
        (-b, -a),
        (-b, a),
        (-a, a),
        (-a, b),
        (a, b),
    ]


# Contours by class name, of any scale and origin. They are filled by the even-odd rule, so a second one is a hole.
_RAW = {
    'arrow': [[(-1, -0.28), (0.05, -0.28), (0.05, -0.8), (1, 0), (0.05, 0.8), (0.05, 0.28), (-1, 0.28)]],
    'crescent': [_crescent()],
    'cross': [_cross()],
    'disc': [_arc(1.0, 0, 352, 45)],
    'ring': [_arc(1.0, 0, 352, 45), _arc(0.56, 0, 352, 45)],
    'square': [[(-1, -1), (1, -1), (1, 1), (-1, 1)]],
    'star': [_star()],
    'triangle': [_arc(1.0, 0, 240, 3)],
}


def polygon_area(points):
    """The area of a closed polygon (N, 2), negative where its points go round the other way."""
    x, y = np.asarray(points, dtype=np.float64).T
    return 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def _normalise(contours):
    """Contours scaled to area 1, their bounding box centred on the origin.

    So size and place say nothing about the class.
    """
    contours = [np.asarray(contour, dtype=np.float64) for contour in contours]
    area = abs(polygon_area(contours[0])) - sum(abs(polygon_area(hole)) for hole in contours[1:])
    centre = (contours[0].max(axis=0) + contours[0].min(axis=0)) / 2
    return [(contour - centre) / np.sqrt(area) for contour in contours]


OUTLINES = {name: _normalise(contours) for name, contours in _RAW.items()}


def place_outline(name, area, angle, stretch, shear, centre):
    """Contours of an outline in pixels (x, y), `area` pixels large.

    The outline is stretched and sheared at constant area, then turned, scaled and moved to `centre`.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[stretch, shear], [0, 1 / stretch]])
    return [np.sqrt(area) * contour @ matrix.T + centre for contour in OUTLINES[name]]
