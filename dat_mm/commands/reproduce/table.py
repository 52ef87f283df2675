# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The table: published, measured, difference; and its place in a README and a metafile."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

from ...errors import UserError
from ...weights import written_whole
from .rows import OURS, Row, task_of

BEGIN, END = '<!-- measured by tools/reproduce.py -->', '<!-- end of what was measured -->'


def collect(row: Row, results: list[dict]) -> list[dict]:
    """The lines of a row: one for each metric, with the mean and the spread of all seeds."""
    lines = []
    metrics = dict.fromkeys([*row.published, *(name for result in results for name in result['metrics'])])
    for metric in metrics:
        values = [result['metrics'][metric] for result in results if metric in result['metrics']]
        if not values:
            continue
        measured, published = mean(values), row.published.get(metric)
        lines.append(
            dict(
                row=row.name,
                metric=metric,
                published=published,
                measured=round(measured, 3),
                difference=None if published is None else round(measured - published, 3),
                spread=round(stdev(values), 3) if len(values) > 1 else None,
                seeds=len(values),
            )
        )
    return lines


def _cost(results: list[dict], *keys: str) -> float:
    return mean(sum(result.get(key) or 0 for key in keys) for result in results)


def costs(results: list[dict]) -> dict:
    """What a row took: seconds to train and to test, on what, by which code."""
    return dict(
        train_seconds=round(_cost(results, 'train_seconds'), 1),
        test_seconds=round(_cost(results, 'test_seconds', 'augmented_seconds'), 1),
        hardware=', '.join(dict.fromkeys(result['hardware'] for result in results)),
        commit=', '.join(dict.fromkeys(result['commit'] for result in results)),
        checkpoint=', '.join(dict.fromkeys(result['checkpoint'] for result in results)),
    )


def with_earlier(file: Path, rows: list[Row], done: list[tuple[Row, list[dict]]]) -> list[tuple[Row, list[dict]]]:
    """Keeps results in a file beside the metafile, and returns them with those that earlier calls left there.

    A new result takes the place of an earlier one with the same seed. Earlier results of other settings are dropped.
    """

    def settings(result):
        return {key: value for key, value in result['asked'].items() if key in ('options', 'train_options')}

    kept = json.loads(file.read_text()) if file.is_file() else {}
    for row, results in done:
        earlier = [result for result in kept.get(row.name, ()) if settings(result) == settings(results[0])]
        by_seed = {result['seed']: result for result in [*earlier, *results]}
        kept[row.name] = sorted(by_seed.values(), key=lambda result: result['seed'] or 0)
    kept = {row.name: kept[row.name] for row in rows if row.name in kept}
    with written_whole(file) as partial:
        partial.write_text(json.dumps(kept, indent=1) + '\n')
    return [(row, kept[row.name]) for row in rows if row.name in kept]


def number(value: float | None, sign: bool = False) -> str:
    """Two digits, and a dash for what there is not."""
    return '-' if value is None else f'{value:+.2f}' if sign else f'{value:.2f}'


def _measured(line: dict) -> str:
    return number(line['measured']) + (f' ± {number(line["spread"])}' if line['spread'] is not None else '')


def markdown(done: list[tuple[Row, list[dict]]]) -> str:
    """The whole table, a line for each metric of each row."""
    heads = ('row', 'metric', 'published', 'measured', 'difference', 'seeds', 'train s', 'test s', 'hardware', 'commit')
    lines = [f'| {" | ".join(heads)} |', f'|{"---|" * len(heads)}']
    for row, results in done:
        cost = costs(results)
        for n, line in enumerate(collect(row, results)):
            first = n == 0
            cells = (
                row.name if first else '',
                line['metric'],
                number(line['published']),
                _measured(line),
                number(line['difference'], sign=True),
                str(line['seeds']),
                f'{cost["train_seconds"]:.0f}' if first and cost['train_seconds'] else '',
                f'{cost["test_seconds"]:.0f}' if first else '',
                cost['hardware'] if first else '',
                cost['commit'] if first else '',
            )
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def write(out: Path, done: list[tuple[Row, list[dict]]]) -> Path:
    """Writes table.md and table.json, and returns the path of the first."""
    out.mkdir(parents=True, exist_ok=True)
    content = [dict(row=row.name, lines=collect(row, results), **costs(results)) for row, results in done]
    for name, text in (('table.json', json.dumps(content, indent=1)), ('table.md', markdown(done))):
        with written_whole(out / name) as partial:
            partial.write_text(text)
    return out / 'table.md'


def _short(done: list[tuple[Row, list[dict]]], folder: Path) -> str:
    """A table for a README: a line for each row, with its main metrics side by side."""
    columns = dict.fromkeys(line['metric'] for row, results in done for line in collect(row, results))
    columns = [
        name
        for name in columns
        if not name.endswith(('small', 'medium', 'large', '75', 'top5', '5 Accuracy', 'SQ', 'RQ'))
    ]
    lines = [f'| Config | {" | ".join(columns)} | seeds | train s |', f'|---|{"---|" * (len(columns) + 2)}']
    for row, results in done:
        found = {line['metric']: line for line in collect(row, results)}
        link = row.config.resolve().relative_to(folder.resolve())
        cells = [_measured(found[name]) if name in found else '' for name in columns]
        cost = costs(results)
        lines.append(f'| [{row.name}]({link}) | {" | ".join(cells)} | {len(results)} | {cost["train_seconds"]:.0f} |')
    return '\n'.join(lines)


def _groups(done):
    """The rows by the metrics they have: a classifier and a detector do not share a table."""
    groups = {}
    for row, results in done:
        metrics = results[0]['metrics']
        task = next((name for name in ('Top 1 Accuracy', 'mIoU', 'PQ') if name in metrics), 'AP')
        groups.setdefault(task, []).append((row, results))
    return groups


def write_readme(readme: Path, done: list[tuple[Row, list[dict]]]) -> None:
    """Puts the measured figures between the two marks of a README."""
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise UserError(f'{readme} has no place for the figures: a line {BEGIN} and below it a line {END}')
    hardware = ', '.join(dict.fromkeys(result['hardware'] for _, results in done for result in results))
    commits = ', '.join(dict.fromkeys(result['commit'] for _, results in done for result in results))
    parts = [_short(part, readme.parent) for part in _groups(done).values()]
    told = f'Mean ± standard deviation over seeds where there are several. On {hardware}; commit {commits}.'
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    with written_whole(readme) as partial:
        partial.write_text('\n\n'.join([f'{before}{BEGIN}', *parts, told, f'{END}{after}']))


def _entry(row: Row, results: list[dict]) -> str:
    """The lines of a row's results in a metafile."""
    tasks = {}
    for line in collect(row, results):
        tasks.setdefault(task_of(line['metric']), {})[line['metric']] = line['measured']
    lines = ['    Results:']
    for task, metrics in tasks.items():
        lines += [f'      - Task: {task}', '        Dataset: Shapes', '        Metrics:']
        lines += [f'          {name}: {value:g}' for name, value in metrics.items()]
    seeds = f'{len(results)} seeds' if len(results) > 1 else 'one seed'
    return '\n'.join([*lines, f'    Results From: {OURS}, {seeds}']) + '\n'


def write_metafile(metafile: Path, done: list[tuple[Row, list[dict]]]) -> None:
    """Puts the measured figures into the entries of a metafile; published ones stay as they are."""
    head, *entries = re.split(r'(?m)^(?=  - Name: )', metafile.read_text())
    by_name = {row.name: (row, results) for row, results in done}
    for n, entry in enumerate(entries):
        name = entry.split('\n')[0].removeprefix('  - Name: ').strip()
        if name not in by_name or by_name[name][0].published:
            continue
        kept = re.sub(rf'(?ms)^    Results:\n.*?^    Results From: {re.escape(OURS)}[^\n]*\n', '', entry)
        entries[n] = kept.rstrip('\n') + '\n' + _entry(*by_name[name])
    with written_whole(metafile) as partial:
        partial.write_text(head + ''.join(entries))
