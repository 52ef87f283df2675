# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/benchmark.py does: it times cases side by side and writes JSON, tables and curves."""

import json
import os
import platform
import shlex
import statistics
import sys
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from ..errors import UserError
from .cases import DEVICES, DTYPES, MODES, TASKS, Case, check_one_of, make_groups, read_size
from .run import run_group
from .suites import SUITES, Group
from .tables import as_dict, case_table, draw, judge, op_rates, quartiles, target_table

PACKAGES = ('dat-mm', 'torch', 'timm', 'mmpretrain', 'triton', 'onnxruntime', 'openvino')


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def describe_machine(device: str, threads: int | None) -> dict:
    """Lists processor, memory and versions, and nothing that names the host or a path."""
    import torch

    machine = dict(
        processor=processor(),
        cores=os.cpu_count(),
        threads=threads or torch.get_num_threads(),
        memory_gb=round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
        load_before=round(os.getloadavg()[0], 2),
        system=platform.system(),
        python=platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    )
    if device == 'cuda':
        machine |= dict(gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda, **ceilings())
        torch.cuda.empty_cache()  # 8.5 GB, which the cases may need
    return machine


def ceilings(side: int = 8192) -> dict:
    """Measures what the GPU does at best: products of random bfloat16 numbers, and copies.

    A copied byte counts twice, read and written.
    """
    import torch

    a, b = (torch.randn(side, side, device='cuda', dtype=torch.bfloat16) for _ in range(2))
    target, seconds = torch.empty(1 << 32, dtype=torch.uint8, device='cuda'), {}
    source = torch.empty_like(target)
    for name, run in (('product', lambda: torch.mm(a, b)), ('copy', lambda: target.copy_(source))):
        times, start = [], time.perf_counter()
        while time.perf_counter() - start < 0.3:  # until the clocks are up
            run()
            torch.cuda.synchronize()
        for _ in range(12):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop) / 1e3)
        seconds[name] = statistics.median(times[2:])
    return dict(
        product_tflops=round(2 * side**3 / seconds['product'] / 1e12, 1),
        copy_tb_per_s=round(2 * (1 << 32) / seconds['copy'] / 1e12, 2),
    )


def check_device(device: str) -> None:
    """Raises unless there is such a device here."""
    import torch

    if device == 'cuda' and not torch.cuda.is_available():
        raise UserError('there is no CUDA device here')


def choose_groups(suite, groups, options) -> list[Group]:
    """Takes the groups of a suite, all or those named; without a suite, makes them from the other options."""
    if suite is None:
        made = make_groups(**options)
        return [Group(f'{i + 1} of {len(made)}', tuple(cases), 5) for i, cases in enumerate(made)]
    chosen = SUITES[suite]()
    if groups:
        check_one_of('group', groups, [group.name for group in chosen])
        chosen = [group for group in chosen if group.name in groups]
    if find_spec('mmpretrain') is None:  # no target is about its models, which only stand beside those of timm
        chosen = [replace(group, cases=tuple(c for c in group.cases if not is_of_mmpretrain(c))) for group in chosen]
    return chosen


def is_of_mmpretrain(case: Case) -> bool:
    return case.model.startswith('mmpretrain/')


def write(out: Path, name: str, machine: dict, command: str, groups, results, minutes: float) -> str:
    """Writes NAME.json, NAME.md and, for more than one size, NAME-growth.png, and returns the table of targets."""
    judged = []
    for group, of_group in zip(groups, results, strict=True):
        found = {result.case: result for result in of_group}
        judged += [judge(target, found) for target in group.targets]
    out.mkdir(parents=True, exist_ok=True)
    of_groups = [
        dict(name=group.name, results=[as_dict(result) for result in of_group])
        for group, of_group in zip(groups, results, strict=True)
    ]
    data = dict(machine=machine, command=command, minutes=round(minutes, 1), targets=judged, groups=of_groups)
    (out / f'{name}.json').write_text(json.dumps(data, indent=1) + '\n')
    facts = ', '.join(f'{key} {value}' for key, value in machine.items() if value is not None)
    text = [f'# Benchmark: {name}', f'`{command}`, {minutes:.1f} minutes. {facts}.']
    if judged:
        text += ['## Targets', target_table(judged)]
    for group, of_group in zip(groups, results, strict=True):
        text += [f'## {group.name}', case_table(of_group), *op_rates(of_group, machine)]
    if draw([r for of_group in results for r in of_group], out / f'{name}-growth.png'):
        text.append(f'![Time and memory over the image]({name}-growth.png)')
    (out / f'{name}.md').write_text('\n\n'.join(text) + '\n')
    return target_table(judged) if judged else ''


def benchmark(*, suite, groups, out, repeats, quick, threads, device, **options) -> bool:
    """Runs the cases, prints and writes their results, and returns whether all of them ran."""
    for name in ('sizes', 'batches', 'repeats', 'threads'):
        values = options.get(name, dict(repeats=repeats, threads=threads).get(name))
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int) and value < 1:
                raise UserError(f'--{name} {value} is not positive')
    device = {'cpu': 'cpu', 'gpu': 'cuda', 'deploy': 'cpu'}.get(suite, device)
    check_one_of('device', [device], DEVICES)
    check_one_of('dtype', options['dtypes'], DTYPES)
    check_one_of('mode', options['modes'], MODES)
    check_one_of('task', [options['task']], TASKS)
    options['sizes'] = [read_size(size) for size in options['sizes']]
    chosen = choose_groups(suite, groups, options | dict(device=device))
    check_device(device)
    arguments = [*sys.argv[1:]]
    if '--out' in arguments:  # results are published, and a path of this machine is nobody's business
        at = arguments.index('--out')
        del arguments[at : at + 2]
    command = shlex.join(['tools/benchmark.py', *arguments])
    name = suite or 'benchmark'
    machine, start, results, targets = describe_machine(device, threads), time.time(), [], ''
    for group in chosen:
        print(f'{time.time() - start:5.0f} s  {group.name}: {len(group.cases)} cases', flush=True)
        rounds = 0 if quick else repeats or group.rounds
        launches = 1 if quick else group.launches
        results.append(run_group(group.cases, rounds=rounds, launches=launches, threads=threads))
        for result in results[-1]:
            print(f'         {result.case.name} {result.case.size}: ', end='')
            if result.error or not result.seconds:
                print(f'failed: {result.error}', flush=True)
            else:
                low, high = quartiles(result.seconds)
                print(f'{low:.4g} to {high:.4g} s, {result.memory / 2**20:.0f} MB', flush=True)
        done, minutes = chosen[: len(results)], (time.time() - start) / 60  # written now, for the next may not end
        targets = write(Path(out), name, machine, command, done, results, minutes)
    print(targets)
    print(f'{name}.json and {name}.md in {out}')
    return all(result.seconds and not result.error for of_group in results for result in of_group)
