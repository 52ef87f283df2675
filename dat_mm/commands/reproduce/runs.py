# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""One row with one seed: the tools that it takes, run one after the other, and its result in a file."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path

from ...benchmark.benchmark import processor
from ...engine.stopping import REQUEUE
from ...errors import UserError
from ...weights import written_whole
from ..steps import Failed, run_all
from .rows import Row, named

PROGRESS = re.compile(r'(?:Epoch|Iter)\((train|val|test)\)\s+(?:\[(\d+)\])?\[\s*(\d+)/(\d+)\](?:.*?eta: (\S+))?')


class Stopped(Exception):
    """A training was asked to stop, and goes on when it is run again."""


@dataclass
class How:
    """How the tools are run: where they lie, on how many processes, and with which options."""

    tools: Path
    out: Path
    processes: int = 1
    launcher: str = 'none'
    cfg_options: list[str] = field(default_factory=list)
    train_options: list[str] = field(default_factory=list)  # for trainings alone
    srun: list[str] = field(default_factory=list)

    def command(self, tool: str, *arguments) -> list[str]:
        """The command line of a tool."""
        script = [self.tools / f'{tool}.py', *arguments]
        if self.launcher == 'slurm':
            return list(map(str, ['srun', '--kill-on-bad-exit=1', *self.srun, sys.executable, '-u', *script,
                                  '--launcher', 'slurm']))  # fmt: skip
        if self.processes > 1:
            return list(map(str, [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node',
                                  self.processes, *script, '--launcher', 'pytorch']))  # fmt: skip
        return list(map(str, [sys.executable, '-u', *script]))


def hardware() -> str:
    """Names what the measurements are made on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'CPU, {torch.get_num_threads()} threads: {processor()}'


def commit(folder: Path) -> str:
    """The commit of the code in a folder, with a + where something is changed, or else its version."""

    def git(*arguments):
        return subprocess.run(['git', '-C', folder, *arguments], capture_output=True, text=True)

    found = git('rev-parse', '--short=10', 'HEAD')
    if found.returncode:
        return f'version {version("dat_mm")}'
    changed = git('status', '--porcelain', '--untracked-files=no').stdout.strip()
    return found.stdout.strip() + ('+' if changed else '')


class Run:
    """A row with a seed. Its folder holds the training, the metrics of each test, and in the end result.json."""

    def __init__(self, row: Row, how: How, seed: int | None = None, checkpoint: Path | None = None):
        self.row, self.how, self.seed, self.checkpoint = row, how, seed, checkpoint
        self.folder = how.out / row.name if seed is None else how.out / row.name / f'seed-{seed}'
        self.file = self.folder / 'result.json'

    @property
    def title(self) -> str:
        return self.row.name if self.seed is None else f'{self.row.name}, seed {self.seed}'

    @property
    def asked(self) -> dict:
        """What the result depends on; where this has changed, it is measured again."""
        options = [option for option in self.how.cfg_options if not option.startswith('data_root=')]
        asked = dict(config=self.row.config.stem, seed=self.seed, options=options)
        if self.checkpoint is None:
            return {**asked, 'train_options': list(self.how.train_options)}
        state = self.checkpoint.stat()
        return {**asked, 'checkpoint': self.checkpoint.name, 'bytes': state.st_size, 'changed': int(state.st_mtime)}

    def result(self) -> dict | None:
        """What was measured, or None if it was not, or with other options."""
        try:
            found = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return None
        return found if found.get('asked') == self.asked else None

    def _tool(self, tool: str, *arguments, on_line) -> float:
        """Runs a tool and returns the seconds it took."""
        start = time.monotonic()
        command = self.how.command(tool, self.row.config, *arguments)
        log = self.folder / f'{tool}.log'
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open('a') as file:
            file.write(f'$ {shlex.join(command)}\n')
        path = os.pathsep.join(filter(None, [str(self.how.tools.parent), os.environ.get('PYTHONPATH')]))
        try:
            run_all({self.row.name: (command, {'PYTHONPATH': path}, log)}, lambda name, line: on_line(line))
        except Failed as error:
            if error.status == REQUEUE or (tool == 'train' and _was_stopped(log)):
                raise Stopped(f'{self.title}: stopped; it goes on when it is run again') from None
            raise
        return time.monotonic() - start

    def train(self, pretrained: Path | None, on_line) -> tuple[Path, float]:
        """Trains, or goes on, and returns the last checkpoint and the seconds of this part."""
        from ...engine.checkpoints import latest_checkpoint

        options = [*self.how.cfg_options, *self.how.train_options]
        if pretrained is not None:
            key = 'model.backbone.init_cfg'
            options += [f'{key}.type=Pretrained', f'{key}.checkpoint={pretrained}']
        arguments = ['--work-dir', self.folder / 'train', '--resume', '--no-validate']
        arguments += ['--seed', self.seed] if self.seed is not None else []
        seconds = self._tool('train', *arguments, *_cfg_options(options), on_line=on_line)
        found = latest_checkpoint(self.folder / 'train')
        if found is None:
            raise UserError(f'{self.title}: the training left no checkpoint in {self.folder / "train"}')
        return found, seconds

    def test(self, checkpoint: Path, augmented: bool, on_line) -> tuple[dict, float]:
        """Tests, and returns the metrics by the names of the metafiles, and the seconds."""
        out = self.folder / ('metrics-augmented.json' if augmented else 'metrics.json')
        arguments = [checkpoint, '--work-dir', self.folder / 'test', '--out', out, *(['--tta'] if augmented else [])]
        seconds = self._tool('test', *arguments, *_cfg_options(self.how.cfg_options), on_line=on_line)
        return named(json.loads(out.read_text()), augmented), seconds

    def loadable(self) -> Path:
        """The checkpoint as the toolboxes load it: one of the authors is converted first."""
        from ...convert import convert, is_official
        from ...weights import read_state_dict, write_state_dict

        state = read_state_dict(self.checkpoint)
        if not is_official(state) and self.checkpoint.suffix == '.pth':
            return self.checkpoint
        converted = self.folder / 'converted.pth'
        write_state_dict(convert(state) if is_official(state) else state, converted)
        return converted

    def do(self, pretrained: Path | None, on_line) -> dict:
        """Does what is left of the run, and returns its result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        result = dict(asked=self.asked, row=self.row.name, seed=self.seed, date=str(date.today()))
        result.update(commit=commit(self.how.tools), hardware=hardware(), processes=self.how.processes)
        result['torch'] = version('torch')
        if self.checkpoint is None:
            spent = self.folder / 'train-seconds.json'  # of earlier parts
            before = json.loads(spent.read_text()) if spent.is_file() else 0
            start = time.monotonic()
            try:
                checkpoint, _ = self.train(pretrained, on_line)
            finally:
                spent.write_text(json.dumps(round(before + time.monotonic() - start, 1)))
            result.update(checkpoint=checkpoint.name, train_seconds=json.loads(spent.read_text()))
        else:
            checkpoint = self.loadable()
            result['checkpoint'] = self.checkpoint.name
        result['metrics'], result['test_seconds'] = self.test(checkpoint, False, on_line)
        if self.row.augmented:
            metrics, seconds = self.test(checkpoint, True, on_line)
            result['metrics'] |= metrics
            result['augmented_seconds'] = seconds
        with written_whole(self.file) as partial:
            partial.write_text(json.dumps(result, indent=1))
        return result

    def trained(self) -> Path | None:
        """The last checkpoint of the run, for those that start from it."""
        from ...engine.checkpoints import latest_checkpoint

        return self.checkpoint or latest_checkpoint(self.folder / 'train')


def _cfg_options(options) -> list[str]:
    return ['--cfg-options', *options] if options else []


def _was_stopped(log: Path) -> bool:
    """Says by what its last start logged whether a training wants to go on, where a launcher hides its exit code."""
    return '--resume goes on from' in log.read_text(errors='replace').rpartition('\n$ ')[2]
