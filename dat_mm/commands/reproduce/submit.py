# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Does the rows as array jobs of Slurm, one for each generation: trainings that others start from come first."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from ...errors import UserError
from .rows import Row
from .runs import Run


def _command(run: Run, work) -> list[str]:
    """The command line that does one run inside a job."""
    how = run.how
    command = [sys.executable, '-u', how.tools / 'reproduce.py', run.row.config, '--out', how.out.resolve()]
    if run.checkpoint is None:
        command += ['--train', '--seeds', f'{run.seed},']
        command += ['--train-options', *how.train_options] if how.train_options else []
    if work.weights_dir is not None:
        command += ['--weights', Path(work.weights_dir).resolve()]
    command += ['--work-dirs', Path(work.work_dirs).resolve(), '--launcher', 'slurm']
    command += ['--cfg-options', *how.cfg_options] if how.cfg_options else []
    return list(map(str, command))


def job_script(runs: list[Run], work) -> str:
    """The script of an array job, whose n-th task does the n-th run."""
    tools = work.how.tools
    path = os.pathsep.join(filter(None, [str(tools.parent), os.environ.get('PYTHONPATH')]))
    cases = []
    for n, run in enumerate(runs):
        mark = run.folder.resolve() / 'train/interrupted.pth'
        line = shlex.join(['run_and_requeue', str(mark), *_command(run, work)])
        cases.append(f'{n}) {line} ;;')
    return '\n'.join(
        [
            '#!/usr/bin/env bash',
            '# Written by tools/reproduce.py.',
            f'export PYTHONPATH={shlex.quote(path)}',
            f'cd {shlex.quote(str(Path.cwd()))}',
            f'source {shlex.quote(str(tools / "slurm_requeue.sh"))}',
            'case $SLURM_ARRAY_TASK_ID in',
            *cases,
            'esac',
            '',
        ]
    )


def resources() -> list[str]:
    """The options about tasks and GPUs, from the variables that the Slurm scripts read."""
    gpus = int(os.environ.get('GPUS', 8))
    if gpus:
        count, per_node = gpus, int(os.environ.get('GPUS_PER_NODE', min(gpus, 8)))
        options = [f'--gres=gpu:{per_node}']
    else:
        count = int(os.environ.get('TASKS', 1))
        per_node, options = int(os.environ.get('TASKS_PER_NODE', count)), []
    nodes = -(-count // per_node)
    options += [f'--nodes={nodes}', f'--ntasks={count}', f'--ntasks-per-node={per_node}']
    return [*options, f'--cpus-per-task={os.environ.get("CPUS_PER_TASK", 5)}']


def by_generation(runs: list[Run], rows: list[Row]) -> dict[str, list[Run]]:
    """Sorts runs by how many trainings come before them, each group under the name of its job."""
    before = {row.config.resolve(): row.pretrained for row in rows}

    def generation(config: Path) -> int:
        pretrained = before.get(config.resolve())
        return 0 if pretrained is None else 1 + generation(pretrained)

    groups = {}
    for run in runs:  # what is tested alone waits for nothing, and is nobody's beginning
        groups.setdefault(generation(run.row.config) if run.checkpoint is None else 1, []).append(run)
    names = {0: 'pretraining', 1: 'rows'}
    return {names.get(n, f'rows-{n}'): groups[n] for n in sorted(groups)}


def submit(work, partition: str) -> list[str]:
    """Submits what is not done, prints the numbers of the jobs, and returns them."""
    for row, reason in work.without:
        work.screen.say(f'{row.name}: left out, {reason}')
    left = [run for run in work.all_runs() if run.result() is None]
    if not left:
        work.screen.end('everything is done')
        return []
    logs, jobs = work.how.out / 'slurm', []
    logs.mkdir(parents=True, exist_ok=True)
    for name, runs in by_generation(left, work.rows).items():
        script = logs / f'{name}.sh'
        script.write_text(job_script(runs, work))
        command = [
            *('sbatch', '--parsable', f'--partition={partition}', f'--job-name=reproduce-{name}'),
            *(f'--array=0-{len(runs) - 1}', *resources(), '--requeue', '--open-mode=append'),
            *(f'--output={logs.resolve()}/{name}-%a.log', f'--signal=B:USR1@{os.environ.get("WARNING", 120)}'),
            *([f'--dependency=afterok:{jobs[-1]}'] if jobs else []),
            *os.environ.get('SBATCH_ARGS', '').split(),
            script,
        ]
        try:
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UserError('--submit needs sbatch, which is not here: is this a node of a Slurm cluster?') from error
        if done.returncode:
            raise UserError(f'sbatch refused {script}: {(done.stderr or done.stdout).strip().splitlines()[-1]}')
        jobs.append(done.stdout.strip().split(';')[0])
        work.screen.say(f'job {jobs[-1]}: {len(runs)} of {name}, the logs are {logs}/{name}-*.log')
    work.screen.end('When they are done, the same command without --submit writes the table.')
    return jobs
