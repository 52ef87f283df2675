# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Draws kernels.png beside this file: where the bias of a key comes from, and who adds up what."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

BLUE, ORANGE, GREY, GREEN = '#3b6ea5', '#d9822b', '#9a9a9a', '#4d8f5b'


def draw_table(axis):
    """The table in its ring, the queries of one key in it, and the cells that one query blends."""
    cells, step, rows, columns = 9, 0.62, 6, 8
    rng = np.random.RandomState(3)
    axis.imshow(
        rng.rand(cells, cells), cmap='Greys', vmin=-0.6, vmax=2.2, extent=(-0.5, cells - 0.5, cells - 0.5, -0.5)
    )
    for at in ((-1.5, -1.5, cells + 3, 1), (-1.5, cells - 0.5, cells + 3, 2), (-1.5, -0.5, 1, cells)):
        axis.add_patch(Rectangle(at[:2], *at[2:], facecolor='white', edgecolor=GREY, hatch='..', lw=0))
    axis.add_patch(Rectangle((cells - 0.5, -0.5), 2, cells, facecolor='white', edgecolor=GREY, hatch='..', lw=0))
    y, x = -0.6 + np.arange(rows) * step, 4.7 + np.arange(columns) * step
    axis.plot(*np.meshgrid(x, y), '.', c=BLUE, ms=4)
    axis.plot(x[0], y[0], 'o', c=ORANGE, ms=6)
    axis.annotate(
        'first query: t(0)\nfrom the point of the key',
        (x[0], y[0]),
        (-1.2, -3.2),
        color=ORANGE,
        fontsize=8,
        arrowprops=dict(arrowstyle='-', color=ORANGE, lw=0.8),
    )
    i, j = 4, 3
    top, left = np.floor(y[i]), np.floor(x[j])
    axis.add_patch(Rectangle((left - 0.5, top - 0.5), 2, 2, fill=False, ec=GREEN, lw=2))
    axis.annotate(
        'one word: four cells,\nblended for this query',
        (left, top + 1.4),
        (0.2, 6.2),
        color=GREEN,
        fontsize=8,
        bbox=dict(fc='white', ec='none', alpha=0.85),
        arrowprops=dict(arrowstyle='-', color=GREEN, lw=0.8),
    )
    axis.set(xlim=(-1.7, cells + 1.7), ylim=(cells + 1.7, -3.9), xticks=[], yticks=[])
    axis.set_title('the table of a head, zeros around it,\nand all queries as one key sees them', fontsize=9)
    axis.set_frame_on(False)


def box(axis, x, y, width, height, text, colour):
    axis.add_patch(Rectangle((x, y), width, height, fc=colour + '30', ec=colour))
    axis.text(x + width / 2, y + height / 2, text, ha='center', va='center', fontsize=8)


def arrow(axis, start, stop, colour='black'):
    axis.add_patch(FancyArrowPatch(start, stop, arrowstyle='-|>', mutation_scale=9, color=colour, lw=1))


def draw_forward(axis):
    for k in range(5):
        for n in range(6):
            here = n == 2
            axis.add_patch(
                Rectangle((k, n), 1, 1, fc=BLUE + ('60' if here and k < 3 else '18' if here else '00'), ec=GREY)
            )
    arrow(axis, (0.2, 2.5), (4.8, 2.5))
    axis.text(2.5, 6.3, 'keys, 32 at a time', ha='center', fontsize=8)
    axis.text(-0.35, 3, 'queries, 64 to a program', rotation=90, va='center', ha='center', fontsize=8)
    lines = 'logits = q k  +  bias of this block\nlargest and sum so far, in powers of 2\noutput so far += weights v'
    axis.text(2.5, -0.4, lines, ha='center', va='bottom', fontsize=8)
    axis.set(xlim=(-0.8, 5.3), ylim=(6.8, -2.4), xticks=[], yticks=[])
    axis.set_title('forward', fontsize=9)
    axis.set_frame_on(False)


def draw_backward(axis):
    box(
        axis,
        0,
        4.6,
        6,
        1.2,
        'a program has 64 keys, and goes through a band of rows:\nlogits again, from the log of the sums',
        BLUE,
    )
    box(axis, 0, 2.4, 2.2, 1.2, 'gradients of\nk, v, points:\nin registers', ORANGE)
    box(axis, 2.9, 2.4, 3.1, 1.2, 'gradients of the logits\nof the band: a workspace\nof at most 48 M numbers', GREY)
    box(axis, 1.3, 0.2, 2.1, 1.2, 'q: a product\nwith the keys', ORANGE)
    box(axis, 3.9, 0.2, 2.6, 1.2, 'table: A$_y^T$ dS A$_x$,\na program a tile\nof the table', ORANGE)
    arrow(axis, (1.1, 4.6), (1.1, 3.6))
    arrow(axis, (4.4, 4.6), (4.4, 3.6))
    arrow(axis, (3.6, 2.4), (2.5, 1.4))
    arrow(axis, (4.9, 2.4), (5.2, 1.4))
    axis.set(xlim=(-0.2, 6.8), ylim=(-0.1, 6.2), xticks=[], yticks=[])
    axis.set_title('backward: every number is added up by one program', fontsize=9)
    axis.set_frame_on(False)


def main():
    figure = Figure(figsize=(12, 4), layout='constrained')
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 0.85, 1.25))
    draw_table(left)
    draw_forward(middle)
    draw_backward(right)
    figure.savefig(Path(__file__).with_name('kernels.png'), dpi=110)


if __name__ == '__main__':
    main()
