# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The one layer on matplotlib: a View in, a figure out. FIGURES lists the kinds."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..errors import UserError
from .fields import receptive_fields
from .inline import img, source_of
from .layer import Layer
from .statistics import similarity_by_depth
from .view import COLOURS, View

QUERY = '#FF2D2D'
PANEL = 3.6  # inches along the longer side of a picture
MANY = 400  # arrows at most: beyond, every so many keys have one

SUFFIXES = ('.png', '.pdf', '.svg')


def colour(group: int) -> str:
    return COLOURS[group % len(COLOURS)]


def _panels(view: View, count: int, columns: int | None = None, extra: float = 0.3) -> tuple[Figure, list[Axes]]:
    """Makes a figure with so many panels, each as large as the picture is wide and high."""
    columns = columns or count
    rows = -(-count // columns)
    height, width = view.picture.shape[:2]
    unit = PANEL / max(height, width)
    figure = Figure(figsize=(columns * width * unit, rows * (height * unit + extra)), layout='constrained')
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _picture(axis: Axes, view: View, title: str, dim: float = 0.0, grey: bool = False) -> None:
    """Draws the picture, darkened so that points stand out, and grey where colours over it mean something."""
    height, width = view.picture.shape[:2]
    pixels = view.picture * (1 - dim)
    if grey:
        pixels = np.repeat(pixels.mean(axis=-1, keepdims=True), 3, axis=-1)
    # a few pixels enlarged are easier to look at when they are blended; many are not touched
    axis.imshow(pixels.astype(np.uint8), interpolation='bicubic' if max(height, width) < 400 else 'auto')
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axis.set_title(title, fontsize=8)
    for side in axis.spines.values():
        side.set_visible(False)


def _query(axis: Axes, view: View, layer: Layer) -> None:
    x, y = view.in_picture(layer.place_of(view.query_number(layer)))
    axis.plot(x, y, marker='*', markersize=11, color=QUERY, markeredgecolor='white', markeredgewidth=0.8, zorder=9)


def _boxes(axis: Axes, view: View, weights: np.ndarray | None = None) -> None:
    """Draws the detections; with weights (G, K) of all points, each says what part of them is inside."""
    places = view.in_picture(view.layer.points_in_input)
    for box in view.boxes:
        corner, width, height = (box.left, box.top), box.right - box.left, box.bottom - box.top
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor='white', linewidth=1.0, zorder=6))
        text = box.title
        if weights is not None:
            text += f' · {weights[box.holds(places)].sum() / weights.sum():.0%}'
        axis.text(
            box.left, box.top, f' {text} ', fontsize=5.5, color='white', va='bottom', zorder=7, clip_on=True,
            bbox=dict(facecolor='black', alpha=0.55, pad=0.4, edgecolor='none'),
        )  # fmt: skip


def _sizes(weights: np.ndarray) -> np.ndarray:
    """The areas of points for weights, the largest as large as fits."""
    most = weights.max() if len(weights) and weights.max() > 0 else 1.0
    return 2.5 + 60 * weights / most


def _key_size(layer: Layer) -> float:
    """The area of a point where all keys are drawn: smaller where there are many."""
    return float(np.clip(900 / layer.keys, 0.6, 9))


def draw_points(axis: Axes, view: View) -> None:
    """The points of all groups, and arrows to them from where they would be without offsets."""
    layer = view.layer
    _picture(axis, view, f'{layer.keys} sampled points, {layer.groups} groups'.replace(', 1 groups', ''), dim=0.25)
    start = view.in_picture(layer.reference_in_input)
    size = _key_size(layer)
    axis.scatter(*start.T, s=size, color='white', alpha=0.55, linewidths=0, zorder=2)
    every = max(1, -(-layer.keys // MANY))
    for group, places in enumerate(view.in_picture(layer.points_in_input)):
        moved = (places - start)[::every]
        axis.quiver(
            *start[::every].T, *moved.T, angles='xy', scale_units='xy', scale=1, width=0.0022, headwidth=4,
            color=colour(group), alpha=0.75, zorder=3,
        )  # fmt: skip
        axis.scatter(*places.T, s=1.6 * size, color=colour(group), linewidths=0, zorder=4)
    _boxes(axis, view)


def draw_strongest(axis: Axes, view: View, layer: Layer, strongest, title: str) -> None:
    """Points of a layer, as (group, key, weight), with areas by weight and colours by group."""
    _picture(axis, view, title, dim=0.35)
    places = view.in_picture(layer.points_in_input)
    group, key, weight = (np.array(part) for part in zip(*strongest, strict=True))
    axis.scatter(
        *places[group, key].T, s=_sizes(weight), c=[colour(g) for g in group], alpha=0.85, edgecolors='black',
        linewidths=0.3, zorder=4,
    )  # fmt: skip


def _draw_weights(axis: Axes, view: View, weights: np.ndarray, whose: str) -> None:
    """The strongest keys for weights (M, K), and what part of all attention they have."""
    layer = view.layer
    strongest = layer.strongest(weights, view.topk)
    share = sum(weight for *_, weight in strongest) / layer.groups
    draw_strongest(axis, view, layer, strongest, f'the {view.topk} keys {whose} to most ({share:.0%})')


def draw_attention(axis: Axes, view: View) -> None:
    """The keys that the query attends to most, as the mean over heads."""
    weights = view.layer.attention(view.query_number())
    _draw_weights(axis, view, weights, 'the query attends')
    _boxes(axis, view, view.layer.by_group(weights))
    _query(axis, view, view.layer)


def draw_keys(axis: Axes, view: View) -> None:
    """The keys that all queries together attend to most."""
    _draw_weights(axis, view, view.layer.received, 'that all queries attend')
    _boxes(axis, view)


def overview(view: View) -> Figure:
    """Points, attention of the query, and the keys that matter most to all queries, beside each other."""
    figure, axes = _panels(view, 3)
    draw_points(axes[0], view)
    draw_attention(axes[1], view)
    draw_keys(axes[2], view)
    return figure


def _single(draw_panel):
    def make(view: View) -> Figure:
        figure, axes = _panels(view, 1)
        draw_panel(axes[0], view)
        return figure

    make.__doc__ = draw_panel.__doc__
    return make


def heads(view: View) -> Figure:
    """The attention of the query in each head."""
    layer, query = view.layer, view.query_number()
    rows = layer.attention(query)
    columns = min(layer.heads, 4 if layer.heads <= 12 else 6)
    figure, axes = _panels(view, layer.heads, columns)
    for head, axis in enumerate(axes):
        group = layer.group_of(head)
        strongest = [(group, key, rows[head, key]) for key in np.argsort(rows[head])[::-1][: view.topk]]
        draw_strongest(axis, view, layer, strongest, f'head {head}, group {group}')
        _query(axis, view, layer)
    return figure


def fields(view: View) -> Figure:
    """What the query can see in ViT, Swin, DCN and DAT."""
    layer, query = view.layer, view.query_number()
    height, width = view.picture.shape[:2]
    figure, axes = _panels(view, 4, 2 if width >= height and width > 700 else 4, extra=0.4)
    for axis, field in zip(axes, receptive_fields(layer, query), strict=True):
        learned = field.title == 'DAT'
        _picture(axis, view, f'{field.title}: {field.what}', dim=0.35)
        places = view.in_picture(field.places)
        size = _sizes(field.weights) if learned else _key_size(layer) * 1.6
        groups = np.repeat(np.arange(layer.groups), layer.keys) if learned else np.zeros(len(places), int)
        axis.scatter(
            *places.T, s=size, c=[colour(g) for g in groups] if learned else '#56B4E9', linewidths=0, alpha=0.8
        )
        _query(axis, view, layer)
    return figure


def bias(view: View) -> Figure:
    """The position bias as the query sees it, head by head: red draws it to a place, blue away."""
    layer, query = view.layer, view.query_number()
    if not layer.has_bias:
        raise UserError(
            f'layer {layer.name} adds no position bias to its logits '
            f'(its form is {type(layer.module.position_bias).__name__}): there is nothing to draw'
        )
    maps, at_keys = layer.bias_map(query), layer.bias(query)
    count = min(layer.heads, 12)
    figure, axes = _panels(view, count, min(count, 4))
    limit = float(np.abs(at_keys if maps is None else maps).max()) or 1.0
    norm = TwoSlopeNorm(0, -limit, limit)
    height, width = layer.map_size
    corners = view.in_picture(layer.map_grid.to_input(np.array([(-0.5, -0.5), (width - 0.5, height - 0.5)])))
    extent = (*corners[:, 0], *corners[::-1, 1])
    for head, axis in enumerate(axes):
        _picture(axis, view, f'head {head}', dim=0.2, grey=True)
        limits = axis.get_xlim(), axis.get_ylim()
        if maps is not None:
            # a map that was flipped has its left on the right, which an extent can say
            shown = axis.imshow(
                maps[head], extent=extent, norm=norm, cmap='RdBu_r', alpha=0.7, interpolation='bilinear'
            )
            axis.set(xlim=limits[0], ylim=limits[1])
        else:
            places = view.in_picture(layer.points_in_input)[layer.group_of(head)]
            shown = axis.scatter(*places.T, c=at_keys[head], norm=norm, cmap='RdBu_r', s=9, linewidths=0)
        _query(axis, view, layer)
    figure.colorbar(shown, ax=axes, shrink=0.8, label='added to the logit').ax.tick_params(labelsize=7)
    return figure


def depth(view: View) -> Figure:
    """The keys that the query attends to most, layer by layer."""
    layers = view.layers
    figure, axes = _panels(view, len(layers), min(len(layers), 4))
    for axis, layer in zip(axes, layers, strict=True):
        strongest = layer.strongest(layer.attention(view.query_number(layer)), view.topk)
        draw_strongest(axis, view, layer, strongest, layer.label)
        _query(axis, view, layer)
    return figure


def decoder(view: View) -> Figure:
    """The keys that the backbone's query attends to, beside what the nearest query of a decoder samples."""
    if not view.recording.decoder:
        raise UserError(
            f'{view.recording.model_name} has no decoder with multi-scale deformable attention, as DINO and Deformable '
            'DETR have: there is nothing to draw'
        )
    figure, axes = _panels(view, 2)
    draw_attention(axes[0], view)
    *_, layer = view.recording.decoder.values()
    size = np.array((view.recording.input_size or view.layer.map_size)[::-1])  # width, height
    query = layer.nearest((view.placement.to_input(view.query) + 0.5) / size, view.image)
    points, weights, levels = layer.sampled(query, view.image)
    count = len(view.recording.decoder)
    _picture(axes[1], view, f'{len(points)} points of the query in the last of {count} decoder layers', dim=0.35)
    places = view.in_picture(points * size - 0.5)
    for level in np.unique(levels):
        own = levels == level
        axes[1].scatter(
            *places[own].T, s=_sizes(weights)[own], color=colour(level), alpha=0.85, edgecolors='black',
            linewidths=0.3, zorder=4, label=f'level {level + 1}',
        )  # fmt: skip
    axes[1].legend(fontsize=5.5, loc='lower right', framealpha=0.55)
    _boxes(axes[1], view)
    return figure


def offsets(view: View) -> Figure:
    """How far points move in each layer and group: the middle half, the median, and 5 to 95 percent."""
    layers = view.layers
    count = sum(layer.groups for layer in layers)
    figure = Figure(figsize=(max(4.5, 0.22 * count + 1.2), 3), layout='constrained')
    axis = figure.subplots()
    position, ticks = 0.0, []
    for layer in layers:
        lengths = np.linalg.norm(layer.offsets_in_input, axis=-1)
        places = position + np.arange(len(lengths))
        parts = axis.boxplot(
            list(lengths), positions=places, widths=0.7, whis=(5, 95), showfliers=False, patch_artist=True,
            medianprops=dict(color='black'), manage_ticks=False,
        )  # fmt: skip
        for group, patch in enumerate(parts['boxes']):
            patch.set_facecolor(colour(group))
        ticks.append((places.mean(), layer.label))
        position = places[-1] + 2
    axis.set_xticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=7, rotation=30, ha='right')
    axis.set_ylabel('distance from the grid, pixels', fontsize=8)
    axis.tick_params(axis='y', labelsize=7)
    axis.grid(axis='y', alpha=0.3)
    axis.set_title('offsets by layer and group', fontsize=8)
    return figure


def similarity(view: View) -> Figure:
    """How alike the attention of two queries is, by depth. 1 says that all queries look at the same keys."""
    layers = view.layers
    figure = Figure(figsize=(max(4.5, 0.35 * len(layers) + 1.2), 3), layout='constrained')
    axis = figure.subplots()
    at = np.arange(len(layers))
    for place, layer in zip(at, layers, strict=True):
        axis.scatter(np.full(layer.heads, place), layer.similarity, s=8, color='#56B4E9', linewidths=0)
    means = [mean for _, mean in similarity_by_depth(layers)]
    axis.plot(at, means, marker='o', markersize=4, color='#D55E00', label='mean over heads')
    axis.set_xticks(at, [layer.label for layer in layers], fontsize=7, rotation=30, ha='right')
    axis.set(ylim=(0, 1.02))
    axis.set_title('how alike the attention of two queries is', fontsize=8)
    axis.set_ylabel('mean cosine of two queries’ attention', fontsize=8)
    axis.tick_params(axis='y', labelsize=7)
    axis.grid(axis='y', alpha=0.3)
    axis.legend(fontsize=7)
    return figure


FIGURES = {
    'overview': overview,
    'points': _single(draw_points),
    'attention': _single(draw_attention),
    'keys': _single(draw_keys),
    'heads': heads,
    'fields': fields,
    'bias': bias,
    'depth': depth,
    'decoder': decoder,
    'offsets': offsets,
    'similarity': similarity,
}


def draw(view: View, kind: str = 'overview') -> Figure:
    """Makes the figure of a kind."""
    if kind not in FIGURES:
        raise UserError(f'figure {kind!r} is not one of {", ".join(FIGURES)}')
    return FIGURES[kind](view)


def save(figure: Figure, path, dpi: int = 200) -> None:
    """Writes a figure into a file whose name says the format."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f'{path}: a figure is one of {", ".join(SUFFIXES)}, and a page is .html')
    figure.savefig(path, dpi=dpi)


def as_html(figure: Figure, alt: str = 'what deformable attention looks at') -> str:
    """A figure as an <img> with its pixels inside."""
    return img(source_of(lambda file: figure.savefig(file, format='png', dpi=110), 'png'), alt)


def as_pixels(figure: Figure, dpi: int = 110) -> np.ndarray:
    """A figure as a picture (H, W, 3) of bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
