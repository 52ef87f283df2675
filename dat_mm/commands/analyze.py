# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/analyze.py does: it draws the curves of training runs and tabulates their best results."""

import json
from pathlib import Path

from ..errors import UserError

# What is logged beside the losses and the metrics, and not drawn; the learning rate is.
BESIDES = {'base_lr', 'data_time', 'epoch', 'grad_norm', 'iter', 'lr', 'memory', 'momentum', 'step', 'time'}
ASIDE = 'attention/'  # begins what dat_mm.AttentionHook logs: drawn where it is asked for, and no result
LOWER_IS_BETTER = ('loss', 'error', 'mae', 'rmse')


def read_run(work_dir) -> tuple[dict, dict]:
    """Reads the log of a run, and returns {name: {step: value}} of its training and of its metrics.

    Where a run was resumed, a step may be logged twice: the later value counts.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not files:
        raise UserError(f'{work_dir} holds no log of a run (*/vis_data/scalars.json)')
    training, metrics = {}, {}
    for file in files:
        iteration = 0
        for line in file.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed
                continue
            if 'lr' in entry:
                series, step = training, entry['step']
                iteration = step
            else:  # step 0: an iteration-based run that logs metrics by epoch
                series, step = metrics, entry['step'] or iteration
            for name, value in entry.items():
                if name not in BESIDES - {'lr'} and isinstance(value, (int, float)):
                    series.setdefault(name, {})[step] = value
    # COCO writes -1 for sizes that the data has no objects of
    metrics = {name: values for name, values in metrics.items() if set(values.values()) != {-1}}
    return training, metrics


def best(name: str, values: dict) -> tuple[int, float]:
    """Finds the best of the values of a metric and returns (step, value)."""
    choose = min if any(word in name.lower() for word in LOWER_IS_BETTER) else max
    step = choose(values, key=lambda step: values[step])
    return step, values[step]


def table(runs: dict) -> str:
    """Makes a Markdown table with a row for each run and metric."""
    rows = ['| run | metric | best | at | last |', '|---|---|---:|---:|---:|']
    for run, (training, metrics) in runs.items():
        for name in sorted(name for name in metrics if not name.startswith(ASIDE)):
            step, value = best(name, metrics[name])
            last = metrics[name][max(metrics[name])]
            rows.append(f'| {run} | {name} | {value:.4g} | {step} | {last:.4g} |')
        if 'loss' in training:
            losses = training['loss']
            step, value = best('loss', losses)
            rows.append(f'| {run} | loss | {value:.4g} | {step} | {losses[max(losses)]:.4g} |')
    return '\n'.join(rows) + '\n'


def draw(runs: dict, part: int, keys, title: str):
    """Draws a panel for each key, with a line for each run; `part` is 0 for the training and 1 for the metrics."""
    from matplotlib.figure import Figure

    columns = min(len(keys), 3)
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(5 * columns, 3.5 * rows), layout='constrained')
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, key in zip(axes, keys, strict=False):
        for run, series in runs.items():
            values = series[part].get(key, {})
            steps = sorted(values)
            few = len(steps) < 30
            axis.plot(steps, [values[step] for step in steps], marker='.' if few else None, lw=1, label=run)
        axis.set_title(key, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes[len(keys) :]:
        axis.set_visible(False)
    if len(runs) > 1:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc='outside lower center', fontsize=8)
    figure.suptitle(title)
    return figure


def names_of(work_dirs) -> list[str]:
    """Names each run by the last part of its path, or by as many parts as tell the runs apart."""
    parts = [Path(work_dir).resolve().parts for work_dir in work_dirs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(part[-count:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def analyze(work_dirs, *, out_dir=None, keys=None, quiet=False):
    """Writes losses.png, metrics.png and results.md into `out_dir` or the first work dir, and returns the table.

    `keys` chooses what is drawn; without it, all losses and the learning rate, and all metrics.
    """
    runs = {name: read_run(work_dir) for name, work_dir in zip(names_of(work_dirs), work_dirs, strict=True)}
    folder = Path(out_dir or work_dirs[0])
    folder.mkdir(parents=True, exist_ok=True)
    known = set()
    for part, title in enumerate(('losses', 'metrics')):
        found = sorted({key for run in runs.values() for key in run[part]}, key=lambda key: (key != 'loss', key))
        known.update(found)
        chosen = [key for key in found if (keys is None and not key.startswith(ASIDE)) or key in (keys or ())]
        if chosen:
            draw(runs, part, chosen, title).savefig(folder / f'{title}.png', dpi=120)
    unknown = set(keys or ()) - known
    if unknown:
        raise UserError(f'--keys {" ".join(sorted(unknown))}: not logged; there are {", ".join(sorted(known))}')
    text = table(runs)
    (folder / 'results.md').write_text(text)
    if not quiet:
        print(text, end='')
        print(f'curves and results.md in {folder}')
    return text
