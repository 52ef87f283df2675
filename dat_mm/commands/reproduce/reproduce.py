# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Goes through the rows of tables of results: what is there is tested, and what is not is trained first if asked to."""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

from ...engine.stopping import REQUEUE
from ...errors import UserError
from ..screen import Screen, bar
from . import plan as plans
from . import submit as submits
from . import table, weights
from .rows import Row, read_rows, with_pretraining
from .runs import PROGRESS, How, Run, Stopped


def seeds_of(text: str) -> list[int]:
    """Reads '3' as the seeds 0, 1 and 2, and '1,5' as these two, and '4,' as one."""
    parts = text.removesuffix(',').split(',')
    if not all(part.isdecimal() for part in parts) or text == '0':
        raise UserError(f'--seeds {text}: a number of seeds, as in 3, or the seeds, as in 0,4')
    return list(map(int, parts)) if ',' in text else list(range(int(text)))


def data_options(data_root, rows: list[Row]) -> dict[str, list[str]]:
    """The option that moves the data of each row: one place for all, or FOLDER=PLACE for each folder of configs."""
    named = dict(text.split('=', 1) for text in data_root if '=' in text)
    plain = [text for text in data_root if '=' not in text]
    if len(plain) > 1 or (plain and named):
        raise UserError(f'--data-root {" ".join(data_root)}: one place for all, or FOLDER=PLACE for each folder')
    folders = {row.name: row.config.resolve().parent.name for row in rows}
    unknown = sorted(set(named) - set(folders.values()))
    if unknown:
        raise UserError(f'--data-root {unknown[0]}={named[unknown[0]]}: no row is in a folder {unknown[0]}')
    places = {name: named.get(folder) or (plain[0] if plain else None) for name, folder in folders.items()}
    return {name: [f'data_root={place}'] if place else [] for name, place in places.items()}


class Reproduction:
    """All rows of one call, with what was found out about each."""

    def __init__(self, rows, how: How, *, train, seeds, weights_dir, work_dirs, data_root, screen=None):
        self.wanted = rows
        self.rows = with_pretraining(rows) if train else rows
        self.how, self.train, self.seeds = how, train, seeds
        self.weights_dir, self.work_dirs = weights_dir, work_dirs
        self.data = data_options(data_root, self.rows)
        self.screen = screen or Screen()
        self.runs: dict[Path, list[Run]] = {}
        self.without: list[tuple[Row, str]] = []
        for row in self.rows:
            self._look_for(row)

    def _how(self, row: Row) -> How:
        options = [*self.data[row.name], *self.how.cfg_options]
        return How(**{**vars(self.how), 'cfg_options': options})

    def _look_for(self, row: Row) -> None:
        """Finds the checkpoint of a row, or plans to train it."""
        from ...engine.checkpoints import latest_checkpoint

        how, reason = self._how(row), ''
        if self.weights_dir is not None:
            found, reason = weights.find(row, self.weights_dir)
            if found is not None:
                self.runs[row.config.resolve()] = [Run(row, how, checkpoint=found)]
                return
        if self.train:
            self.runs[row.config.resolve()] = [Run(row, how, seed) for seed in self.seeds]
            return
        own = latest_checkpoint(Path(self.work_dirs, row.name))
        if own is not None:
            self.runs[row.config.resolve()] = [Run(row, how, checkpoint=own)]
        else:
            self.without.append((row, reason or f'no checkpoint in {Path(self.work_dirs, row.name)}'))

    def all_runs(self) -> list[Run]:
        return [run for row in self.rows for run in self.runs.get(row.config.resolve(), ())]

    def pretrained_of(self, run: Run) -> Path | None:
        """The checkpoint that a training starts from: of the same seed, where there are several."""
        if run.row.pretrained is None or run.checkpoint is not None:
            return None
        options = self.runs[run.row.pretrained.resolve()]
        before = next((other for other in options if other.seed == run.seed), options[0])
        found = before.trained()
        if found is None or (before.checkpoint is None and before.result() is None):
            raise UserError(f'{run.title}: {before.title}, which it starts from, is not trained')
        return found

    def do(self) -> list[tuple[str, str]]:
        """Does what is not done, and returns what failed, with the reason."""
        runs, failed = self.all_runs(), []
        for row, reason in self.without:
            self.screen.say(f'{row.name}: left out, {reason}')
        for n, run in enumerate(runs):
            place = f'[{n + 1}/{len(runs)}] {run.title}'
            result = run.result()
            if result is not None:
                self.screen.say(f'{place}: done before: {summary(result)}')
                continue
            try:
                result = run.do(self.pretrained_of(run), self._progress(place))
            except UserError as error:
                failed.append((run.title, str(error)))
                self.screen.say(f'{place}: failed: {error}')
                continue
            self.screen.say(f'{place}: {summary(result)}')
            self.write()
        return failed

    def _progress(self, place: str):
        def on_line(line: str) -> None:
            match = PROGRESS.search(line)
            if match:
                phase, epoch, at, of, left = match.groups()
                part = f'{phase} {f"epoch {epoch}, " if epoch else ""}{at} of {of}'
                self.screen.now(f'{bar(int(at) / int(of))} {place}: {part}{f", {left} left" if left else ""}')

        return on_line

    def done(self) -> list[tuple[Row, list[dict]]]:
        """The rows that have results."""
        found = []
        for row in self.rows:
            results = [run.result() for run in self.runs.get(row.config.resolve(), ())]
            results = [result for result in results if result is not None]
            if results:
                found.append((row, results))
        return found

    def write(self) -> Path | None:
        done = self.done()
        return table.write(self.how.out, done) if done else None

    def write_back(self) -> None:
        """Puts what was measured, by this call and by earlier ones, beside the configs."""
        folders = {}
        for row, results in self.done():
            if row.metafile is not None:
                folders.setdefault(row.metafile, []).append((row, results))
        for metafile, done in folders.items():
            done = table.with_earlier(metafile.parent / 'measured.json', read_rows([metafile.parent]), done)
            table.write_metafile(metafile, done)
            table.write_readme(metafile.parent / 'README.md', done)


def summary(result: dict) -> str:
    """The metrics of a result in a few words."""
    return ', '.join(f'{name} {value:.2f}' for name, value in list(result['metrics'].items())[:6])


@contextmanager
def _ending_on_sigterm(launcher: str):
    """Ends on SIGTERM as on Ctrl-C, so that the tool that is running is asked to stop. Slurm asks it itself."""

    def stop(number, frame):
        if launcher != 'slurm':
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def reproduce(
    paths,
    *,
    tools,
    weights=None,
    work_dirs='work_dirs',
    data_root=(),
    out='work_dirs/reproduced',
    train=False,
    seeds='1',
    processes=1,
    plan=False,
    submit=None,
    write=False,
    launcher='none',
    cfg_options=(),
    train_options=(),
):
    """Measures rows and prints their table; the options are those of tools/reproduce.py."""
    srun = os.environ.get('SRUN_ARGS', '').split() if launcher == 'slurm' else []
    how = How(Path(tools), Path(out), processes, launcher, list(cfg_options), list(train_options), srun)
    options = dict(train=train, seeds=seeds_of(seeds), weights_dir=weights, work_dirs=work_dirs, data_root=data_root)
    work = Reproduction(read_rows(paths), how, **options)
    if plan:
        return plans.show(work)
    if submit is not None:
        return submits.submit(work, submit)
    if not work.all_runs():
        reasons = '; '.join(f'{row.name}: {reason}' for row, reason in work.without[:3])
        raise UserError(f'nothing to measure ({reasons}); --weights DIR names checkpoints, --train trains')
    try:
        with _ending_on_sigterm(launcher):
            failed = work.do()
    except (Stopped, KeyboardInterrupt) as stopped:
        work.screen.end(str(stopped) or 'stopped; the same command goes on')
        raise SystemExit(REQUEUE) from None
    path = work.write()
    if write:
        work.write_back()
    if path is not None:
        work.screen.end(f'\n{path.read_text()}\n{path}')
    if failed:
        raise UserError(f'{len(failed)} of {len(work.all_runs())} failed; the first: {failed[0][0]}: {failed[0][1]}')
    return path
