# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Looks at the installation and at the ops, tells how it goes, and prints a summary for an issue."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from ...errors import UserError
from ...version import __version__
from ..screen import Screen, bar
from .mending import mend

PROBES = Path(__file__).with_name('probes.py')
LIMIT = 120  # seconds for a probe


def probe(names) -> Iterator[dict]:
    """Runs probes in a process of their own, and goes on in another one after a probe that ends it."""
    left = list(names)
    path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get('PYTHONPATH')])])
    while left:
        command = [sys.executable, '-W', 'ignore', PROBES, *left]
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, 'PYTHONPATH': path},
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=LIMIT)
            end = f'it ended the process with {process.returncode}'
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            end = f'no answer after {LIMIT} s'
        found = [json.loads(line) for line in out.splitlines()]
        yield from found
        left = left[len(found) :]
        if left:
            last = err.strip().splitlines()[-1:] or ['']
            yield dict(probe=left[0], state='wrong', told=f'{end}; {last[0]}'.removesuffix('; '))
            left = left[1:]


def look_at_installation(screen: Screen) -> list[dict]:
    from . import probes

    found = []
    screen.now('imports')
    for result in probe(probes.PROBES):
        if result['state'] == 'wrong':
            result['mend'] = mend(result['told'])
        found.append(result)
        help_ = f'\n         -> {result["mend"]}' if 'mend' in result else ''
        screen.say(f'{result["probe"]:12}{MARKS[result["state"]]}{result["told"]}{help_}')
    return found


MARKS = {'ok': '', 'absent': '- ', 'wrong': 'WRONG: '}


def look_at_ops(screen: Screen, device: str, repeats: int) -> list[dict]:
    from . import trials

    found, plan = [], trials.plan(device)
    screen.say(f'each backend of each op against float64 on the CPU, forward and backward, on {device}:')
    for n, planned in enumerate(plan):
        screen.now(f'{bar(n / len(plan))} {planned.name}, {planned.dtype}')
        results = trials.try_one(planned, device, repeats)
        found += results
        told = [f'{_mark(row)}{row["backend"]} {_figure(row)}' for row in results if row['state'] != 'cannot']
        screen.say(f'{planned.name}, {planned.dtype}: {", ".join(told)}{_wrong_choice(results)}')
    return found


def _mark(row: dict) -> str:
    return '*' if row['auto'] else ''


def _figure(row: dict) -> str:
    if row['state'] == 'wrong':
        return f'WRONG: {row["why"]}'
    return f'{row["milliseconds"]:.3g} ms'


def _wrong_choice(results: list[dict]) -> str:
    """Tells where another backend that is right is faster than the one that 'auto' takes, by a fifth or more."""
    timed = [row for row in results if row['state'] == 'ok']
    chosen = next((row for row in timed if row['auto']), None)
    if chosen is None or not timed:
        return '; auto takes one that is wrong' if any(row['auto'] for row in results) else ''
    best = min(timed, key=lambda row: row['milliseconds'])
    if chosen['milliseconds'] > 1.2 * best['milliseconds']:
        return f'; {best["backend"]} would be faster than {chosen["backend"]}'
    return ''


def _markdown(report: dict) -> str:
    """The summary to paste into an issue."""
    lines = [f'### dat_mm {report["dat_mm"]}, {report["date"]}, {report["system"]}', '', '| | |', '|---|---|']
    for result in report['installation']:
        help_ = f' -> `{result["mend"]}`' if 'mend' in result else ''
        lines.append(f'| {result["probe"]} | {MARKS[result["state"]]}{_cell(result["told"])}{help_} |')
    if report['ops']:
        lines += ['', f'On {report["device"]}, forward and backward, * what `auto` takes:', '']
        lines += ['| op | dtype | backend | ms | difference | repeats | |', '|---|---|---|---:|---:|---|---|']
        for row in report['ops']:
            if row['state'] != 'cannot':
                lines.append(_row(row))
    return '\n'.join(lines) + '\n'


def _row(row: dict) -> str:
    figures = ('', '', '')
    if 'difference' in row:
        figures = f'{row["milliseconds"]:.3g}', f'{row["difference"]:.1e}', 'yes' if row['repeats'] else 'no'
    cells = (row['case'], row['dtype'], _mark(row) + row['backend'], *figures, _cell(row['why']))
    return f'| {" | ".join(cells)} |'


def _cell(text: str) -> str:
    return ' '.join(text.replace('|', '/').split())[:300]


def doctor(*, device=None, json=None, repeats=3, only=None) -> bool:
    """Tells what is wrong, and returns whether nothing is; the options are those of tools/doctor.py."""
    screen, out = Screen(sys.stderr), json
    report = dict(dat_mm=__version__, date=str(date.today()), system=f'{platform.platform()}, {os.cpu_count()} cores')
    report['installation'] = look_at_installation(screen) if only != 'ops' else []
    report['ops'] = []
    torch_runs = all(result['state'] == 'ok' for result in report['installation'] if result['probe'] == 'torch')
    if only != 'installation' and torch_runs:
        report['device'] = device = _device(device)
        report['ops'] = look_at_ops(screen, device, repeats)
    screen.end('')
    print(_markdown(report))
    if out is not None:
        _write(out, report)
    wrong = [row for row in [*report['installation'], *report['ops']] if row['state'] == 'wrong']
    screen.end(f'{len(wrong)} wrong' if wrong else 'nothing is wrong')
    return not wrong


def _device(wanted: str | None) -> str:
    import torch

    if wanted is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.ones(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {wanted}: {str(error).splitlines()[0]}') from error
    return wanted


def _write(out: str, report: dict) -> None:
    try:
        Path(out).write_text(json.dumps(report, indent=1) + '\n')
    except OSError as error:
        raise UserError(f'--json {out}: {error.strerror}') from error
