# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The compiler of set-up, with a precompiled header, makes the same objects as the plain compiler.

Where the header cannot be used, the plain compiler runs, and a line says so.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / 'requirements'


sys.path.insert(0, str(FOLDER))  # as for `python requirements/install.py`, which imports its neighbour
import fast_headers  # noqa: E402

pytestmark = pytest.mark.one_stack

sys.path.remove(str(FOLDER))
needs_gxx = pytest.mark.skipif(not shutil.which('g++'), reason='g++ is not installed')


class Build:
    """A folder with a C++ file, headers in place of torch's, and the compiler that set-up offers for it."""

    def __init__(self, folder, **environment):
        self.folder, self.headers = folder, folder / 'headers'
        self.headers.mkdir()
        (folder / 'include/torch').mkdir(parents=True)
        (folder / 'include/torch/types.h').write_text('#pragma once\ninline int one() { return 1; }\n')
        (folder / 'file.cpp').write_text('#include <torch/types.h>\nint two() { return one() + 1; }\n')
        self.environment = {**os.environ, **environment}
        self.refused = fast_headers.offer(self.headers, self.environment)

    def run(self, *call):
        return subprocess.run(['c++', *call], cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def compile(self, *options, to='file.o'):
        """Compiles the file as torch's build does. -H prints `! NAME` where a precompiled header is read."""
        return self.run('-MMD', '-MF', f'{to}.d', '-H', '-Iinclude', '-c', 'file.cpp', '-o', to, *options)

    def used_header(self, result):
        assert result.returncode == 0, result.stderr
        return f'! {self.headers}/torch.h.gch' in result.stderr


def write_program(path, text):
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return str(path)


@needs_gxx
def test_every_file_starts_from_one_header(tmp_path):
    build = Build(tmp_path, CXX='g++')
    assert build.refused is None
    assert build.used_header(build.compile('-O2'))  # the first file makes the header and uses it too
    assert build.used_header(build.compile('-O2', to='again.o'))
    names = subprocess.run(['nm', '-C', tmp_path / 'again.o'], capture_output=True, text=True).stdout
    assert 'T two()' in names


@needs_gxx
@pytest.mark.parametrize('other', ['-O0', '-std=c++20', '-fno-exceptions', '-DTORCH=2'])
def test_other_options_go_the_plain_way(tmp_path, other):
    build = Build(tmp_path, CXX='g++')
    assert build.used_header(build.compile('-O2', '-std=c++17'))
    assert not build.used_header(build.compile('-O2', '-std=c++17', other))
    assert build.used_header(build.compile('-O2', '-std=c++17'))


@needs_gxx
def test_object_is_the_plain_one(tmp_path):
    build = Build(tmp_path, CXX='g++')
    assert build.used_header(build.compile('-O2', to='fast.o'))
    plain = ['g++', '-Iinclude', '-c', 'file.cpp', '-o', 'plain.o', '-O2']
    subprocess.run(plain, cwd=tmp_path, check=True)
    assert (tmp_path / 'fast.o').read_bytes() == (tmp_path / 'plain.o').read_bytes()


def test_another_compiler_is_refused(tmp_path):
    compiler = write_program(tmp_path / 'clang++', "echo '#define __GNUC__ 4'; echo '#define __clang__ 1'")
    build = Build(tmp_path, CXX=compiler)
    assert build.refused == f'{compiler} is not g++'
    assert build.environment['CXX'] == compiler
    assert not list(build.headers.iterdir())


@needs_gxx
def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(9, 8, 1_200_000_000))
    build = Build(tmp_path, CXX='g++')
    assert '1.2 GB left' in build.refused
    assert build.environment['PATH'] == os.environ['PATH']


CALLS = [
    (['--version'], None),
    (['-shared', 'a.o', 'b.o', '-o', 'a.so'], None),
    (['-E', 'a.cpp'], None),
    (['-c', 'a.cpp', 'b.cpp'], None),
    (['-c', 'a.c', '-o', 'a.o'], None),
    (['-x', 'cuda', '-c', 'a.cpp'], None),
    (
        ['-MMD', '-MF', 'a.o.d', '-O3', '-I/b', '-c', '-c', '/c/a.cpp', '-o', 'a.o', '-DA=a.cpp'],
        ['-O3', '-I/b', '-DA=a.cpp'],
    ),
]


@pytest.mark.parametrize('call, options', CALLS, ids=lambda value: ' '.join(value or ['plain']))
def test_only_a_compilation_of_one_file_has_options(call, options):
    assert fast_headers.options_of(call) == options


@needs_gxx
def test_other_calls_reach_the_compiler_as_they_are(tmp_path):
    """They end with the status of the compiler, and see a PATH without the folder of set-up's compiler."""
    compiler = write_program(
        tmp_path / 'compiler', 'case "$*" in *-dM*) exec g++ "$@";; esac; echo "$PATH"; printf "<%s>" "$@"; exit 3'
    )
    build = Build(tmp_path, CXX=f'{compiler} -O1')
    result = build.run('--version', 'a b', "c'd")
    assert result.returncode == 3
    assert result.stdout == f"{os.environ['PATH']}\n<-O1><--version><a b><c'd>"


@needs_gxx
@pytest.mark.parametrize('call', ['*c++-header*', '*-include*'], ids=['making the header', 'reading it'])
def test_a_failing_header_costs_a_line_and_no_more(tmp_path, call):
    """The first case is as on a full disk, the second as with a g++ that cannot map the header where it must."""
    compiler = write_program(
        tmp_path / 'compiler', f'case "$*" in {call}) echo no room >&2; exit 1;; esac; exec g++ "$@"'
    )
    build = Build(tmp_path, CXX=compiler)
    first, second = build.compile(), build.compile()
    assert not build.used_header(first) and not build.used_header(second)
    assert fast_headers.MARK in first.stderr and 'no room' in first.stderr
    assert fast_headers.MARK not in second.stderr
    assert {path.name for path in build.headers.iterdir()} == {'c++', 'options.json', 'torch.h'}


@needs_gxx
def test_an_error_in_a_file_reads_as_ever(tmp_path):
    build = Build(tmp_path, CXX='g++')
    (tmp_path / 'file.cpp').write_text('int two() { return nothing; }\n')
    result = build.compile()
    assert result.returncode == 1
    assert "'nothing' was not declared" in result.stderr.replace('‘', "'").replace('’', "'")


class Setup:
    """The second process of install.py, in a test's folders, with a Python that answers in place of torch and pip."""

    def __init__(self, folder, pip):
        self.temporary, self.cache = folder / 'temporary', folder / 'cache'
        for path in (self.temporary, self.cache, folder / 'venv/bin'):
            path.mkdir(parents=True)
        target = json.dumps({'key': 'torch-9', 'device': 'cpu', 'note': ''})
        answers = f"case $1 in *mmcv_target.py) echo '{target}'; exit;; esac\n{pip}"
        write_program(folder / 'venv/bin/python', answers)
        self.process = subprocess.Popen(
            [sys.executable, FOLDER / 'install.py', '--mmcv', 'openmmlab', folder / 'venv'],
            env={**os.environ, 'TMPDIR': str(self.temporary), 'DAT_MM_CACHE': str(self.cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def left(self):
        return [path for top in (self.temporary, self.cache) for path in top.rglob('*') if path.is_file()]


WHEEL = 'while [ "$1" != --wheel-dir ]; do shift; done; echo wheel > "$2/mmcv-2.1.0.whl"'


@needs_gxx
def test_the_wheel_is_all_that_a_build_leaves(tmp_path):
    setup = Setup(tmp_path, f'echo made > "$TMPDIR/object.o"; {WHEEL}')
    output = setup.process.communicate()[0]
    assert setup.process.returncode == 0, output
    folder = setup.cache / 'wheels/mmcv-2.1.0/torch-9'
    assert sorted(setup.left()) == [folder / 'build.log', folder / 'mmcv-2.1.0.whl']
    assert (tmp_path / 'venv/mmcv-wheel.txt').read_text() == str(folder / 'mmcv-2.1.0.whl')


@needs_gxx
def test_lines_about_the_header_are_passed_on(tmp_path):
    setup = Setup(tmp_path, f'echo unimportant; echo "  {fast_headers.MARK} no room"; {WHEEL}')
    output = setup.process.communicate()[0]
    assert f'   mmcv==2.1.0: {fast_headers.MARK} no room\n' in output
    assert 'unimportant' not in output


@needs_gxx
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_stopped_build_leaves_nothing_behind(tmp_path, number):
    """No file is left but the log, and no process, since the pipe that the process held open has ended."""
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    setup = Setup(
        tmp_path,
        f'exec 3> {shlex.quote(str(pipe))}; echo half > "$TMPDIR/object.o"; sleep 600 & echo "[1/1] c++"; wait',
    )
    with open(pipe) as waiting:
        while '1 of 1 files' not in (line := setup.process.stdout.readline()):
            assert line, 'the build ended by itself'
        setup.process.send_signal(number)
        setup.process.communicate(timeout=60)
        assert setup.process.returncode == 1
        assert [path.name for path in setup.left()] == ['build.log']
        assert waiting.read() == ''
