# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A recording beside the picture that it is of: what figures and pages are made from."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import UserError
from .geometry import Placement
from .layer import Layer
from .pictures import picture_of, read_picture
from .record import Recording

# Okabe and Ito's colours, which people who are colour-blind tell apart; more groups begin again
COLOURS = ('#E69F00', '#56B4E9', '#009E73', '#F0E442', '#CC79A7', '#D55E00', '#0072B2', '#FFFFFF')


@dataclass(frozen=True)
class Box:
    """A detection: its corners in pixels of the picture, its class and its score."""

    left: float
    top: float
    right: float
    bottom: float
    label: str = ''
    score: float | None = None

    @property
    def title(self) -> str:
        return ' '.join([self.label, *([] if self.score is None else [f'{self.score:.2f}'])]).strip()

    def holds(self, places: np.ndarray) -> np.ndarray:
        """Says which of the places (..., 2) of the picture are inside."""
        x, y = np.moveaxis(np.asarray(places), -1, 0)
        return (x >= self.left) & (x <= self.right) & (y >= self.top) & (y <= self.bottom)


def boxes_of(sample, classes, least_score: float, placed=None) -> list[Box]:
    """The detections of a toolbox's data sample, the surest first; none where it is not of a detector.

    `placed` moves places (..., 2) of the picture to where the boxes are wanted.
    """
    found = getattr(sample, 'pred_instances', None)
    if found is None or 'bboxes' not in found or 'scores' not in found:
        return []
    corners = found.bboxes.detach().cpu().numpy().reshape(-1, 2, 2)
    if placed is not None:
        corners = np.sort(placed(corners), axis=1)  # a flip exchanges them
    return sorted(
        (
            Box(*map(float, box.flat), classes[label] if classes else str(label), float(score))
            for box, label, score in zip(corners, found.labels.tolist(), found.scores.tolist(), strict=True)
            if score >= least_score
        ),
        key=lambda box: -box.score,
    )


@dataclass
class View:
    """A recording, the picture that it is of, and what to look at.

    Args:
        picture: (H, W, 3), bytes.
        placement: how the picture became the input of the model.
        image: which of the batch.
        layer_name: the layer to look at; None chooses one.
        query: (x, y) in pixels of the picture; None is the middle of the surest box, or of the picture.
        topk: how many of the strongest keys are drawn.
        boxes: detections, the surest first.
    """

    recording: Recording
    picture: np.ndarray
    placement: Placement
    image: int = 0
    layer_name: str | None = None
    query: tuple[float, float] | None = None
    topk: int = 60
    boxes: list[Box] = field(default_factory=list)
    title: str = ''

    def __post_init__(self):
        self.layer_name = self.recording.find(self.layer_name)
        if self.topk < 1:
            raise UserError(f'topk={self.topk} is not positive')
        if self.query is None:
            self.query = self._default_query()
        self.placement.check_query(self.query)
        self._layers: dict[str, Layer] = {}

    def _default_query(self):
        if self.boxes:
            box = self.boxes[0]
            # a box may lie partly outside: its middle need not be in the picture
            corner = np.array(self.placement.size) - 1
            middle = np.clip([(box.left + box.right) / 2, (box.top + box.bottom) / 2], 0, corner)
        else:
            middle = self.placement.to_picture((np.array(self.placement.kept) - 1) / 2)
        x, y = (float(n) for n in np.rint(middle))
        return x, y

    @property
    def layer(self) -> Layer:
        return self.layer_at(self.layer_name)

    def layer_at(self, name: str) -> Layer:
        """A layer of the recording, made once."""
        if name not in self._layers:
            self._layers[name] = self.recording.layer(name, self.image)
        return self._layers[name]

    @property
    def layers(self) -> list[Layer]:
        return [self.layer_at(name) for name in self.recording]

    def query_number(self, layer: Layer | None = None) -> int:
        """The query of a layer that is nearest to the place that was chosen."""
        return (layer or self.layer).map_grid.nearest(self.placement.to_input(self.query))

    def in_picture(self, places: np.ndarray) -> np.ndarray:
        return self.placement.to_picture(places)

    def figure(self, kind: str = 'overview'):
        """A matplotlib figure; figures.FIGURES lists the kinds."""
        from .figures import draw

        return draw(self, kind)

    def save(self, path, kind: str = 'overview', dpi: int = 200) -> Path:
        """Writes a figure (.png, .pdf, .svg) or the interactive page (.html), and returns its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in ('.html', '.htm'):
            from .page import make_page

            path.write_text(make_page(self), encoding='utf-8')
        else:
            from .figures import save

            save(self.figure(kind), path, dpi)
        return path

    def interactive(self, height: int = 760) -> 'Inline':
        """The interactive page, shown inside a notebook."""
        from .page import make_page

        return Inline(make_page(self), height)

    def _repr_html_(self) -> str:
        from .figures import as_html

        return as_html(self.figure())


@dataclass(frozen=True)
class Inline:
    """A page that a notebook shows in a frame."""

    page: str
    height: int

    def _repr_html_(self) -> str:
        from html import escape

        return (
            f'<iframe title="what deformable attention looks at" srcdoc="{escape(self.page)}" '
            f'style="width:100%;height:{self.height}px;border:0"></iframe>'
        )


def show(
    recording: Recording,
    picture,
    *,
    layer: str | None = None,
    query: tuple[float, float] | None = None,
    topk: int = 60,
    image: int = 0,
    meta: dict | None = None,
    boxes=(),
    title: str = '',
) -> View:
    """A view of what a layer looks at in a picture. Notebooks draw it; `save` writes a figure or the page.

    Args:
        picture: the picture, or the input of the model, (H, W, 3) or (3, H, W), of bytes or numbers, or its file.
        query: (x, y) in pixels of the picture.
        image: which of the batch.
        meta: the metainfo of the picture's data sample, if a toolbox resized, cropped, flipped or padded it. Without
            it, the picture fills the input.
        boxes: detections, as Box.
    """
    if isinstance(picture, str | Path):
        picture = read_picture(picture)
    shape = getattr(picture, 'shape', ())
    if len(shape) == 4 and shape[0] > 1:
        picture = picture[image]
    pixels = picture_of(picture)
    size = pixels.shape[1], pixels.shape[0]
    if meta is not None:
        placement = Placement.from_meta(meta, size)
    else:
        # a lone attention has no input that it would know of: its map is taken for one
        placement = Placement.of(size, recording.input_size or recording.layer(layer, image).map_size)
    return View(recording, pixels, placement, image, layer, query, topk, list(boxes), title)
