# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What is told of results: medians, ratios and growth, the tables of targets and of cases, the curves."""

import math
import statistics
from dataclasses import asdict
from importlib.util import find_spec
from typing import NamedTuple

from .cases import OP
from .run import Result

MB, GB = 2**20, 1e9


def ratio(a: Result, b: Result) -> float:
    """Divides a's seconds by b's in each round, which other work slows alike, and returns the median."""
    return statistics.median(x / y for x, y in zip(a.seconds, b.seconds, strict=True))


def exponent(xs, ys) -> float:
    """Fits y = c x^p and returns p, which is 1 where y is linear in x, and less where it has a constant part too."""
    return statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def _seconds(result):
    return statistics.median(result.seconds)


class Measure(NamedTuple):
    """Says how the value of a target is computed from the results of its cases."""

    compute: object
    at_least: bool = False  # whether the bound is a least value, not a greatest


MEASURES = {
    'speed': Measure(lambda ours, other: ratio(other, ours), at_least=True),
    'time': Measure(ratio),
    'memory': Measure(lambda ours, other: ours.memory / other.memory),
    'peak': Measure(lambda ours: ours.peak / GB),
    'time over logits': Measure(lambda *grown: exponent([r.logits for r in grown], [_seconds(r) for r in grown])),
    'memory over logits': Measure(lambda *grown: exponent([r.logits for r in grown], [r.memory for r in grown])),
    'memory over pixels': Measure(lambda *grown: exponent([r.case.pixels for r in grown], [r.memory for r in grown])),
}


def judge(target, results: dict) -> dict:
    """Tells what was measured for a target and whether it is met; both are None if one of its cases failed."""
    found = [results.get(case) for case in target.cases]
    compute, at_least = MEASURES[target.measure]
    value = met = None
    if all(r and r.seconds and not r.error for r in found):
        value = compute(*found)
        met = value >= target.bound if at_least else value <= target.bound
    return dict(
        title=target.title, measure=target.measure, at_least=at_least, bound=target.bound, measured=value, met=met
    )


def _row(*cells) -> str:
    return f'| {" | ".join(cells)} |'


def target_table(judged: list[dict]) -> str:
    """Makes a Markdown table with a row for each target."""
    lines = [_row('target', 'at', 'measured', ''), '|---|---:|---:|---|']
    for row in judged:
        bound = f'{"≥" if row["at_least"] else "≤"} {row["bound"]:.3g}'
        measured = '-' if row['measured'] is None else f'{row["measured"]:.3g}'
        word = {True: 'met', False: '**missed**', None: 'not measured'}[row['met']]
        lines.append(_row(row['title'], bound, measured, word))
    return '\n'.join(lines)


def quartiles(values) -> tuple[float, float]:
    """Returns the lower and the upper quartile, which of one value are that value."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, high


def _time(seconds: float) -> str:
    return f'{seconds:.3g} s' if seconds >= 1 else f'{seconds * 1e3:.3g} ms'


def case_table(results: list[Result]) -> str:
    """Makes a Markdown table of a group: medians, quartiles, and times relative to the first of the same situation."""
    head = ('model', 'size', 'batch', 'dtype', 'mode', 'time of a step', 'quartiles', 'images/s')
    lines = [_row(*head, 'time', 'products', 'memory', 'peak'), f'|---|---{"|---:" * 10}|']
    firsts = {}
    for result in results:
        case = result.case
        cells = [f'`{case.name}`', '{}x{}'.format(*case.size), str(case.batch), case.dtype, case.mode]
        if result.error or not result.seconds:
            lines.append(_row(*cells, f'failed: {result.error or "no round"}'.replace('|', '/'), *6 * ['']))
            continue
        first = firsts.setdefault((case.size, case.batch, case.dtype, case.mode, case.task), result)
        low, high = (_time(seconds) for seconds in quartiles(result.seconds))
        seconds = _seconds(result)
        factor = f'{ratio(result, first):.2f}x' if len(result.seconds) == len(first.seconds) else '-'
        products = _time(statistics.median(result.products)) if result.products else '-'
        memory = f'{result.memory / MB:.0f} MB', f'{result.peak / MB:.0f} MB'
        rate = f'{case.batch / seconds:.3g}'
        lines.append(_row(*cells, _time(seconds), f'{low} to {high}', rate, factor, products, *memory))
    return '\n'.join(lines)


OP_WIDTH = 32  # channels of a head
OP_PRODUCTS = {'inference': 2, 'backward': 7}  # products of (queries, width) by (width, keys): 2 forward, 5 backward


def op_rates(results: list[Result], machine: dict) -> list[str]:
    """Compares the op alone on a GPU with what the GPU does at best, counting the arithmetic of its products only."""
    lines = []
    for result in results:
        case, best = result.case, machine.get('product_tflops')
        if case.model == OP and case.mode in OP_PRODUCTS and best and result.seconds and not result.error:
            products = OP_PRODUCTS[case.mode] * 2 * OP_WIDTH * result.logits / 1e12
            rate = products / _seconds(result)
            lines.append(
                f'`{case.name}`, {case.mode}: {rate:.3g} TFLOP/s, {rate / best:.1%} of a large product; '
                f'its products alone would take {_time(products / best)}.'
            )
    return lines


def as_dict(result: Result) -> dict:
    """Turns a result into a dict for JSON, and adds the median of its seconds."""
    return asdict(result) | dict(median=_seconds(result) if result.seconds else None)


def curves(results: list[Result]) -> dict[str, list[Result]]:
    """Collects the results of each model and situation that has at least two sizes, smallest first."""
    lines = {}
    for result in results:
        if result.seconds and not result.error:
            case = result.case
            shared = dict.fromkeys((case.dtype, case.mode, case.batch))
            lines.setdefault((case.name, *shared), []).append(result)
    return {
        ' '.join([name, dtype, mode, f'batch {batch}']): sorted(line, key=lambda r: r.case.pixels)
        for (name, dtype, mode, batch), line in lines.items()
        if len({r.case.size for r in line}) > 1
    }


def draw(results: list[Result], path) -> bool:
    """Draws time and memory over the image's size; returns False where there is only one size, or no matplotlib."""
    lines = curves(results)
    if not lines or not find_spec('matplotlib'):
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout='constrained')
    panels = (
        ('time of a step, s', _seconds),
        ('peak memory above the weights, MB', lambda result: result.memory / MB),
    )
    for axis, (title, value) in zip(figure.subplots(1, 2), panels, strict=True):
        for name, line in lines.items():
            sides = [math.sqrt(math.prod(r.case.size)) for r in line]
            axis.loglog(sides, [value(r) for r in line], marker='.', lw=1, label=name)
            axis.set_xticks(sides, [f'{side:.0f}' for side in sides], minor=False)
        corner, low = min(sides), min(value(line[0]) for line in lines.values())
        ends = [corner, max(sides)]
        axis.loglog(ends, [low * (x / corner) ** 2 for x in ends], ':', c='grey', lw=1, label='linear in pixels')
        axis.minorticks_off()
        axis.set_title(title, fontsize=10)
        axis.set_xlabel('side of the image, pixels')
        axis.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=2, fontsize=8)
    figure.savefig(path, dpi=120)
    return True
