# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A C++ compiler that reads torch's headers from one precompiled header; install.py compiles mmcv with it.

Every file of mmcv includes torch's headers, and parsing them is most of the work of compiling it. g++ can keep
what it has parsed in a file and start from there ("Using Precompiled Headers" in the manual of gcc).

`offer` makes a folder with a program `c++` and puts that folder first on a build's PATH. The program is `main`.
The first call that compiles a C++ file makes the header, with the options of that call. Calls that come in the
meantime run as they are. Later calls with the same options start from the header. Any other call runs as it is:
linking, other options, other languages. nvcc does not call `c++`, so a CUDA build's own lines stay as they are.

Wherever the header cannot be made or used, the compiler runs as it was called, and a line says why.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HEADERS = '#include <torch/types.h>\n#include <vector>\n'
SPACE = 2_000_000_000  # bytes: the header takes about a quarter, the rest is left to the build
MARK = 'precompiled header:'  # begins every line that is for the user; install.py passes such lines on
FILE_OPTIONS = ('-o', '-MF', '-MT', '-MQ')  # a file's name follows
OTHER_COMPILERS = ('__clang__', '__INTEL_COMPILER', '__NVCOMPILER')  # these define __GNUC__ too


def why_not(compiler, folder):
    """Say why a compiler cannot make the header in a folder, or return nothing."""
    command = [*compiler, '-dM', '-E', '-x', 'c++', os.devnull]
    macros = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.split()
    if '__GNUC__' not in macros or any(macro in macros for macro in OTHER_COMPILERS):
        return f'{shlex.join(compiler)} is not g++'
    free = shutil.disk_usage(folder).free
    if free < SPACE:
        return f'{folder} has {free / 1e9:.1f} GB left, {SPACE / 1e9:.0f} are needed (TMPDIR names another folder)'
    return None


def offer(folder, environment):
    """Put the compiler into an empty folder and on the PATH of an environment, or say why that is not done."""
    compiler = shlex.split(environment.get('CXX', 'c++'))
    if reason := why_not(compiler, folder):
        return reason
    program = Path(folder, 'c++')
    ours = shlex.join([sys.executable, '-IS', str(Path(__file__).resolve()), str(folder), *compiler, '--'])
    program.write_text(f'#!/bin/sh\nexec {ours} "$@"\n')
    program.chmod(0o755)
    environment['PATH'] = f'{folder}{os.pathsep}{environment["PATH"]}'
    if 'CXX' in environment:
        environment['CXX'] = 'c++'
    return None


def options_of(call):
    """Return the options of a call that compiles one C++ file, without its files; None for any other call."""
    options, sources, words = [], [], iter(call)
    for word in words:
        if word in FILE_OPTIONS:
            next(words, None)
        elif word.endswith(('.cpp', '.cc', '.cxx')) and word[0] != '-':
            sources.append(word)
        elif word not in ('-c', '-MD', '-MMD'):
            options.append(word)
    return options if '-c' in call and '-x' not in call and len(sources) == 1 else None


def report(text):
    print(MARK, text, file=sys.stderr, flush=True)


def last_line(stderr):
    return (stderr.decode(errors='replace').strip().splitlines() or ['it does not say why'])[-1]


def header_is_ready(header, compiler, options):
    """Say whether a file with these options can start from the header; the first to ask makes it."""
    made, claim, part = Path(f'{header}.gch'), header.with_name('options.json'), header.with_name('part')
    try:
        with open(claim, 'x') as file:
            json.dump(options, file)
    except FileExistsError:
        return made.exists() and json.loads(claim.read_text()) == options
    header.write_text(HEADERS)
    command = [*compiler, *options, '-w', '-x', 'c++-header', str(header), '-o', str(part)]
    result = subprocess.run(command, stderr=subprocess.PIPE)
    if result.returncode:
        part.unlink(missing_ok=True)
        report(f'it could not be made, each file parses torch by itself ({last_line(result.stderr)})')
        return False
    part.replace(made)  # in one step: nobody reads half a header
    return True


def compile_with_header(header, compiler, call):
    """Compile from the header and say whether that went well; if not, remove the header."""
    # with a header that does not fit, g++ reads torch's headers as ever, and this warning says so
    command = [*compiler, '-include', str(header), '-Winvalid-pch', *call]
    result = subprocess.run(command, stderr=subprocess.PIPE)
    if result.returncode:
        Path(f'{header}.gch').unlink(missing_ok=True)
        report(f'a file did not compile with it, the rest goes without ({last_line(result.stderr)})')
        return False
    sys.stderr.buffer.write(result.stderr)
    return True


def main(folder, *words):
    """Run `COMPILER... -- CALL...`, from the header where that can be."""
    end = words.index('--')
    compiler, call = words[:end], words[end + 1 :]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    # so that ccache and the like find the compiler itself behind this one
    search = [path for path in os.environ['PATH'].split(os.pathsep) if path != folder]
    os.environ['PATH'] = os.pathsep.join(search)
    options, header = options_of(call), Path(folder, 'torch.h')
    try:
        done = options and header_is_ready(header, compiler, options) and compile_with_header(header, compiler, call)
    except OSError as error:
        report(f'{error}; this file parses torch by itself')
        done = False
    if not done:
        os.execvp(compiler[0], [*compiler, *call])


if __name__ == '__main__':
    main(*sys.argv[1:])
