# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What several tests do with runs of the tools in processes of their own, and read from their logs."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]


def add_plugin(config, source, settings=''):
    """Lets a config import a module of this source, which `run` finds, and appends settings to it."""
    folder = config.parent / 'plugins'
    folder.mkdir()
    (folder / 'plugin.py').write_text(source)
    text = config.read_text()
    assert "imports=['dat_mm']" in text
    config.write_text(text.replace("imports=['dat_mm']", "imports=['dat_mm', 'plugin']") + f'\n{settings}')


def python_path(config):
    """PYTHONPATH for a run of a config that `add_plugin` extended."""
    return os.pathsep.join([str(ROOT), str(config.parent / 'plugins'), *filter(None, [os.environ.get('PYTHONPATH')])])


def run(config, work_dir, *options, processes=1, tool='train.py'):
    """Runs a tool to its end, with one thread in each of its processes."""
    launcher = [sys.executable, '-u'] if processes == 1 else [
        *(sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', str(processes), '--standalone'),
    ]  # fmt: skip
    command = [*launcher, ROOT / 'tools' / tool, config, *options, '--work-dir', work_dir]
    if processes > 1:
        command += ['--launcher', 'pytorch']
    environment = {**os.environ, 'PYTHONPATH': python_path(config), 'OMP_NUM_THREADS': '1'}
    return run_alone(command, env=environment)


def run_alone(command, limit=600, **options) -> subprocess.CompletedProcess:
    """Runs a command in a group of its own, all of which is killed at the limit or when the test ends.

    A process that outlives its parent keeps the pipes open, and subprocess.run would wait for it for ever.
    """
    process = subprocess.Popen(
        list(map(str, command)), text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, **options,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        err += f'\nkilled after {limit} s'
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def losses(work_dir):
    """{step: (loss, gradient norm)} with all digits. Where a run has several parts, the last one counts."""
    found = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if 'loss' in entry:
                found[entry['step']] = entry['loss'], entry.get('grad_norm')
    return found


def log_text(work_dir):
    """The text logs of all starts of a run."""
    return '\n'.join(path.read_text() for path in sorted(Path(work_dir).glob('*/*.log')))
