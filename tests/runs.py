# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What several tests do with runs of the tools in processes of their own, and read from their logs."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
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
    """PYTHONPATH for a run of a config that `add_plugin` may have extended, or of none."""
    plugins = [str(config.parent / 'plugins')] if config is not None else []
    return os.pathsep.join([str(ROOT), *plugins, *filter(None, [os.environ.get('PYTHONPATH')])])


def run(config, work_dir, *options, processes=1, tool='train.py', real=False, limit=600):
    """Runs a tool to its end, with one thread in each of its processes.

    They are forked from one that has imported the toolboxes, unless `real` asks for a new Python, and for torchrun.
    """
    arguments = [config, *options, '--work-dir', work_dir, *(['--launcher', 'pytorch'] if processes > 1 else [])]
    arguments, script = list(map(str, arguments)), str(ROOT / 'tools' / tool)
    environment = {**os.environ, 'PYTHONPATH': python_path(config), 'OMP_NUM_THREADS': '1'}
    if not real:
        return forked(script, arguments, environment, processes, limit)
    launcher = [sys.executable, '-u']
    if processes > 1:
        launcher += ['-m', 'torch.distributed.run', '--nproc_per_node', processes, '--standalone']
    return run_alone([*launcher, script, *arguments], limit, env=environment)


_SERVER = []


def forked(script, arguments, environment, processes=1, limit=600) -> subprocess.CompletedProcess:
    """Runs a script in processes that begin with all toolboxes imported, of one group where they are several."""
    environments = [environment]
    if processes > 1:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        group = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(processes))
        group['LOCAL_WORLD_SIZE'] = group['WORLD_SIZE']
        environments = [environment | group | dict(RANK=str(n), LOCAL_RANK=str(n)) for n in range(processes)]
    if not _SERVER:
        command = [sys.executable, '-W', 'ignore', Path(__file__).with_name('fork_server.py')]
        settings = {**os.environ, 'PYTHONPATH': python_path(None), 'OMP_NUM_THREADS': '1'}
        _SERVER.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings)
        )
        atexit.register(_SERVER[0].kill)
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder, name) for name in ('out', 'err'))
        request = dict(
            script=script, arguments=arguments, environments=environments, out=str(out), err=str(err), limit=limit
        )
        try:
            _SERVER[0].stdin.write(json.dumps(request) + '\n')
            _SERVER[0].stdin.flush()
            status = int(_SERVER[0].stdout.readline())
        except BaseException:  # the test was ended, or the server
            _SERVER.pop().kill()
            raise
        told = (path.read_text() if path.exists() else '' for path in (out, err))
        return subprocess.CompletedProcess([script, *arguments], status, *told)


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


# What two runs of one training may differ in: their names, their clocks, and the options that interrupt one of them.
OWN = ('cfg', 'experiment_name', 'time', 'data_time', 'eta')


def assert_same_training(work_dir, other):
    """Asserts that two runs ended with the same checkpoint, to the bit.

    Compared are weights, their averages, the optimizer, schedules, counters, the history of losses and metrics, and
    the record of the best checkpoint.
    """
    import torch

    from dat_mm.engine.checkpoints import latest_checkpoint

    one, two = (latest_checkpoint(folder) for folder in (work_dir, other))
    assert one.name == two.name
    _assert_alike(*(torch.load(path, weights_only=False) for path in (one, two)), 'checkpoint')


def _assert_alike(one, two, place):
    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer

    assert type(one) is type(two), f'{place}: {one!r} and {two!r}'
    if isinstance(one, HistoryBuffer):
        one, two = vars(one), vars(two)
    if isinstance(one, dict):
        keys, others = ([key for key in part if str(key).rpartition('/')[2] not in OWN] for part in (one, two))
        assert keys == others, f'{place}: {set(keys) ^ set(others) or "another order"}'
        for key in keys:
            _assert_alike(one[key], two[key], f'{place}, {key}')
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), place
        for n, (part, other) in enumerate(zip(one, two, strict=True)):
            _assert_alike(part, other, f'{place}, {n}')
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), place
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, two), place
    elif isinstance(one, str) and '/' in one:  # a path, which is in the folder of the run
        assert Path(one).name == Path(two).name, place
    else:
        assert one == two, place
