# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The doctor finds what is wrong with an installation and with ops, names it and says what mends it."""

import json
import os
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from dat_mm.commands.doctor import mending, probes, trials
from dat_mm.errors import UserError
from dat_mm.ops import backends

ROOT = Path(__file__).parents[2]
module = import_module('dat_mm.commands.doctor.doctor')


def main(arguments):
    runpy.run_path(str(ROOT / 'tools/doctor.py'))['main'](arguments)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Puts a module before the installed ones of the same name."""
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get('PYTHONPATH')])]))

    def write(name, source):
        (tmp_path / f'{name}.py').write_text(source)

    return write


def probed(*names):
    found = list(module.probe(names))
    assert [result['probe'] for result in found] == list(names)
    return found


def test_what_is_installed_is_found_by_running_it():
    python, torch_found, compiler = probed('Python', 'torch', 'compiler')
    assert (python['state'], python['told']) == ('ok', '.'.join(map(str, sys.version_info[:3])))
    assert (torch_found['state'], torch_found['told']) == ('ok', torch.__version__)
    assert compiler['state'] in ('ok', 'wrong')


@pytest.mark.slow
def test_both_halves_of_the_stack_are_found_whole():
    pytest.importorskip('mmdet')
    found = probed('stack', 'OpenCV', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
    assert [result['state'] for result in found] == ['ok'] * 7, found
    assert found[-1]['told'].endswith('builds dat_mm.DAT')


@pytest.mark.parametrize(
    ('source', 'told', 'mended'),
    [
        (
            "raise ImportError('libGL.so.1: cannot open shared object file')",
            'ImportError: libGL',
            'opencv-python-headl',
        ),
        ('import pkg_of_nobody', "ModuleNotFoundError: No module named 'pkg_of_nobody'", 'pip install pkg_of_nobody'),
        ('import os; os._exit(3)', 'it ended the process with 3', 'docs/install.md, under Errors'),
    ],
    ids=['error', 'missing', 'crash'],
)
def test_an_import_that_fails_is_told_with_what_mends_it(source, told, mended, fake):
    """Even one that ends the process; the probes after it still run."""
    fake('cv2', f'print("noise on stdout")\n{source}\n')
    broken, python = probed('OpenCV', 'Python')
    assert broken['state'] == 'wrong' and broken['told'].startswith(told), broken
    assert mended in mending.mend(broken['told'])
    assert python['state'] == 'ok'


def test_an_import_that_takes_for_ever_ends(fake, monkeypatch):
    monkeypatch.setattr(module, 'LIMIT', 5)
    fake('cv2', 'import threading; threading.Event().wait()')
    hanging, python = probed('OpenCV', 'Python')
    assert hanging['told'].startswith('no answer after 5 s') and python['state'] == 'ok'


def test_two_stacks_in_one_environment_are_told(monkeypatch):
    monkeypatch.setattr(probes, '_installed', lambda name: name in ('mmcv', 'onedl-mmcv', 'mmengine'))
    with pytest.raises(RuntimeError, match='mmcv and onedl-mmcv are both installed'):
        probes.one_stack()
    monkeypatch.setattr(probes, '_installed', lambda name: False)
    with pytest.raises(probes.Absent, match=r'dat_mm\.ops works without'):
        probes.one_stack()


def test_the_page_and_the_doctor_know_the_same_errors():
    """The messages of docs/install.md that an import can raise all have a line that mends them."""
    rows = re.findall(r'(?m)^\| `([^`]+)`(?:, or `[^`]+`)? \|', (ROOT / 'docs/install.md').read_text())
    of_setup = ('every file parses', '... because', 'precompiled header', '... [-Winvalid', 'Weights only')
    errors = [row for row in rows if not row.startswith(of_setup)]
    assert len(errors) >= 8
    assert [error for error in errors if mending.mend(error).startswith('docs/')] == []


def only_sampling(monkeypatch):
    plan, table = trials.plan('cpu'), backends.SAMPLING
    others = {name: backend for name, backend in table.items() if name != 'triton'}  # interpreted, it takes seconds
    for name in reversed(list(table)):  # all, so that afterwards they are in their order again: 'auto' goes by it
        monkeypatch.delitem(table, name)
    for name, backend in others.items():
        monkeypatch.setitem(table, name, backend)
    monkeypatch.setattr(trials, 'plan', lambda device: [one for one in plan if 'sampling' in one.name][:1])


def test_ops_are_held_against_float64(monkeypatch, tmp_path, capsys):
    only_sampling(monkeypatch)
    main(['--only', 'ops', '--device', 'cpu', '--repeats', '1', '--json', str(tmp_path / 'found.json')])
    told = capsys.readouterr()
    assert '| sampling of features, dat-tiny stage 3, 224 | float32 | *reference | ' in told.out
    assert 'nothing is wrong' in told.err
    (reference,) = json.loads((tmp_path / 'found.json').read_text())['ops']
    assert reference['auto'] and reference['repeats'] and reference['difference'] < 1e-5


@pytest.mark.parametrize(
    ('change', 'why'),
    [
        (lambda out: out * 1.01, 'the gradient of points differs by 0.01 of the largest value'),
        (lambda out: out * float('nan'), 'the output differs by nan of the largest value'),
        (lambda out: out.no_such_attribute, "'Tensor' object has no attribute 'no_such_attribute'"),
    ],
    ids=['wrong', 'nan', 'error'],
)
def test_an_op_that_is_wrong_is_told_and_sets_the_exit_status(change, why, monkeypatch, capsys):
    only_sampling(monkeypatch)
    run = backends.SAMPLING['reference'].run
    broken = backends.Backend(lambda x, points: change(run(x, points)))
    monkeypatch.setitem(backends.SAMPLING, 'broken', broken)
    with pytest.raises(SystemExit) as end:
        main(['--only', 'ops', '--device', 'cpu', '--repeats', '1'])
    assert end.value.code == 1
    told = capsys.readouterr()
    assert f'broken WRONG: {why}' in told.err and '1 wrong' in told.err
    assert why in told.out


def test_a_device_that_is_not_there_is_told():
    with pytest.raises(UserError, match='--device cuda:77: '):
        module.doctor(device='cuda:77', only='ops')


def test_all_ops_are_in_the_plan():
    tables = [planned.make(*planned.arguments, torch.float32).table for planned in trials.plan('cpu')]
    assert all(any(table is found for found in tables) for table in backends.TABLES)
    assert len(trials.plan('cuda')) == 3 * len(trials.plan('cpu'))


def test_an_installed_package_has_it_too():
    done = subprocess.run(
        [sys.executable, '-m', 'dat_mm.doctor', '--help'], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0 and '--json' in done.stdout
