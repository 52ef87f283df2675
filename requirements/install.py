# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Make a virtual environment with one of the two OpenMMLab stacks and this package, editable.

`make setup` calls it as `python requirements/install.py STACK VENV`, with a Python that it has found fit.

mmcv is compiled once and its wheel kept in ${DAT_MM_CACHE:-${XDG_CACHE_HOME:-~/.cache}/dat_mm}/wheels. pip's
own cache is not used for it: pip finds wheels by source alone, and mmcv's ops load only with the torch they
were compiled against. To compile it takes torch and a few more packages (build.in), so those come first, and
mmcv is compiled by a second process, `python requirements/install.py --mmcv STACK VENV`, while pip installs the
others.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import fast_headers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WHEEL = 'mmcv-wheel.txt'  # in an environment: where its mmcv came from
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def fail(what, todo):
    sys.exit(f'\nsetup stopped: {what}\n  -> {todo}')


def say(text):
    print(f'== {text}', flush=True)


def run(what, todo, *command):
    if subprocess.run([str(part) for part in command], cwd=ROOT).returncode:
        fail(f'{what} failed; the reason is above', todo)


def check_compiler():
    """mmcv's ops, and torch.compile on CPU, need a C++17 compiler and Python's headers."""
    compiler = shlex.split(os.environ.get('CXX', 'c++'))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'check.cpp')
        source.write_text('#include <Python.h>\n#include <optional>\nstd::optional<int> x;\n')
        include = f'-I{sysconfig.get_paths()["include"]}'
        try:
            result = subprocess.run(
                [*compiler, '-std=c++17', include, '-c', str(source), '-o', str(Path(folder, 'check.o'))],
                capture_output=True,
                text=True,
            )
        except OSError:
            fail(
                f'there is no C++ compiler {compiler[0]!r}',
                'install one (Debian, Ubuntu: apt install g++) or name yours: make setup CXX=/path/to/g++',
            )
    if result.returncode:
        fail(
            f'{compiler[0]!r} does not compile a C++17 file with Python.h:\n{result.stderr.strip()}',
            "install a C++17 compiler and Python's headers (Debian, Ubuntu: apt install g++ python3-dev)",
        )


def make_venv(venv):
    python = venv / 'bin' / 'python'
    if python.exists():
        version = subprocess.run([python, '-m', 'pip', '--version'], capture_output=True, text=True)
        if version.returncode == 0:
            say(f'{venv.name} is there already: {version.stdout.strip()}')
            return python
    say(f'making {venv.name} with Python {sys.version.split()[0]}')
    run(
        f'making {venv.name}',
        'the modules venv and ensurepip are needed (Debian, Ubuntu: apt install python3-venv)',
        *(sys.executable, '-m', 'venv', '--clear', venv),
    )
    return python


def read_pins(stack):
    """{'mmcv': 'mmcv==2.1.0', ...}; the forks' names without their `onedl-`."""
    lines = (HERE / f'{stack}.txt').read_text().splitlines()
    pins = [line.strip() for line in lines if line.strip() and not line.startswith('#')]
    return {pin.split('==')[0].removeprefix('onedl-'): pin for pin in pins}


def cache_dir():
    if chosen := os.environ.get('DAT_MM_CACHE'):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'dat_mm'


def mmcv_wheel(python, pin):
    """The wheel of mmcv for this environment's torch: from the cache, or compiled into it."""
    try:
        target = json.loads(subprocess.check_output([python, HERE / 'mmcv_target.py'], text=True))
    except subprocess.CalledProcessError:
        fail('torch does not import; the reason is above', f'remove {python.parents[1].name} and try again')
    if target['note']:
        say(target['note'])
    folder = cache_dir() / 'wheels' / pin.replace('==', '-') / target['key']
    if found := sorted(folder.glob('*.whl')):
        say(f'{pin}: compiled earlier, {found[0]}')
        return found[0]
    say(f'{pin}: compiling for {target["key"]}')
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f'the wheel needs a place to stay: {error}', 'name a folder: make setup DAT_MM_CACHE=/some/folder')
    with tempfile.TemporaryDirectory(dir=folder) as built, tempfile.TemporaryDirectory(prefix='dat_mm-') as scratch:
        compile_wheel(python, pin, target['device'], built, scratch, folder / 'build.log')
        wheel = next(Path(built).glob('*.whl'))
        return wheel.replace(folder / wheel.name)  # in one step: a stopped build leaves nothing to be found


def compile_wheel(python, pin, device, folder, scratch, log):
    """pip says nothing while it compiles: have it print ninja's lines, and pass on how far it is."""
    name = pin.split('==')[0]
    command = [python, '-m', 'pip', 'wheel', '-v', '--no-cache-dir', '--no-build-isolation', '--no-deps']
    command += ['--disable-pip-version-check', '--no-binary', name, '--wheel-dir', folder, pin]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')  # a job takes up to 2.5 GB
    environment = {'MAX_JOBS': str(max(1, min(cores, memory // 2_500_000_000))), 'MMCV_WITH_OPS': '1', **os.environ}
    environment['PATH'] = f'{Path(python).parent}{os.pathsep}{environment["PATH"]}'  # ninja is in there
    environment['TMPDIR'] = scratch
    # Python's own flags ask for debugging symbols, most of them of torch's headers. A CFLAGS that is set replaces all
    # of these flags, -O3 among them, so they are repeated.
    environment.setdefault('CFLAGS', f'{sysconfig.get_config_var("CFLAGS")} -g0')
    if device == 'cpu':
        environment['CUDA_VISIBLE_DEVICES'] = ''
    headers = Path(scratch, 'headers')
    headers.mkdir()
    if reason := fast_headers.offer(headers, environment):
        say(f'{pin}: every file parses the headers of torch by itself, because {reason}')
    minutes = '20 to 40' if reason else '5 to 12'
    say(f'{pin}: its C++ takes {minutes} minutes of one core, less with more cores')
    start, shown, errors, last = time.monotonic(), 0.0, [], deque(maxlen=20)
    with open(log, 'w') as file, in_a_group([str(part) for part in command], environment) as process:
        for line in process.stdout:
            file.write(line)
            last.append(line[:400].rstrip())
            if re.search(r'\berror\b|Killed', line, re.IGNORECASE):
                errors.append(last[-1])
            if fast_headers.MARK in line:
                print(f'   {pin}: {line.strip()[:400]}', flush=True)
            now = time.monotonic() - start
            if (step := re.search(r'\[(\d+)/(\d+)\]', line)) and (now - shown > 15 or step[1] == step[2]):
                shown = now
                print(f'   {pin}: {step[1]} of {step[2]} files, {now / 60:.1f} min', flush=True)
    if process.returncode:
        print(*(errors[:20] or last), sep='\n')
        fail(
            f'compiling {pin} failed; the whole log is {log}',
            'the lines above should say why. If memory ran out ("Killed"): MAX_JOBS=1 make setup.'
            + ' For CPU ops only: CUDA_VISIBLE_DEVICES= make setup' * (device != 'cpu'),
        )


@contextmanager
def in_a_group(command, environment):
    """Run a command whose output is read; whoever leaves early stops it and all that it started."""
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        start_new_session=True,
    )
    try:
        yield process
        process.wait()
    except BaseException:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave things behind
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.communicate(timeout=10)  # until all have closed it, and write no more files
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        raise


@contextmanager
def compiling_mmcv(stack, venv):
    """Let a second process compile mmcv meanwhile, and wait for it at the end."""
    process = subprocess.Popen([sys.executable, __file__, '--mmcv', stack, venv])
    try:
        yield
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.wait():
        fail('there is no mmcv; the reason is above', 'then run make setup again; it goes on from here')


def main(stack, venv):
    start = time.monotonic()
    check_compiler()
    python, pins = make_venv(venv), read_pins(stack)
    # Python compiles each module when it is first imported; all of them now would take half a minute
    pip = (python, '-m', 'pip', 'install', '--disable-pip-version-check', '--no-compile')
    again = 'check the network and the disk (7 GB are needed), then run make setup again; it goes on from here'
    say('torch, and what mmcv is compiled with')
    run('installing them', again, *pip, '-r', HERE / 'build.in', '-c', HERE / 'constraints.txt')
    del pins['mmcv']
    with compiling_mmcv(stack, venv):
        say('the other third-party packages, while mmcv compiles')
        run('installing them', again, *pip, '-qq', '-r', HERE / 'common.in', '-c', HERE / 'constraints.txt')
        say(f'the {stack} stack')
        run('installing it', again, *pip, '-qq', '--no-deps', *pins.values())
        say('dat_mm, editable')
        run('installing it', 'see setup.py', *pip, '-qq', '--no-deps', '--no-build-isolation', '--editable', ROOT)
    # forced: by name and version, an mmcv compiled for another torch looks the same
    wheel = (venv / WHEEL).read_text()
    run('installing mmcv', again, *pip, '-qq', '--no-deps', '--force-reinstall', wheel)
    say('checking that everything imports')
    run('the check', f'remove {venv.name} and run make setup again', python, HERE / 'check.py', stack)
    say(f'{venv.name} is ready, {(time.monotonic() - start) / 60:.1f} min')


if __name__ == '__main__':
    for number in STOPPING:
        signal.signal(number, signal.default_int_handler)
    try:
        if sys.argv[1] == '--mmcv':
            stack, venv = sys.argv[2], Path(sys.argv[3])
            wheel = mmcv_wheel(venv / 'bin' / 'python', read_pins(stack)['mmcv'])
            (venv / WHEEL).write_text(str(wheel))
        else:
            main(sys.argv[1], Path(sys.argv[2]).absolute())
    except KeyboardInterrupt:
        sys.exit('\nsetup stopped' if sys.argv[1] != '--mmcv' else 1)
