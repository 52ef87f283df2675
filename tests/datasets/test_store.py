# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import signal
import subprocess
import sys

import pytest

from dat_mm.datasets.store import MARKER, build_once, read_marker

pytestmark = pytest.mark.one_stack

RECIPE = {'kind': 'test', 'seed': 1}


def fill(folder):
    (folder / 'sub').mkdir()
    (folder / 'sub' / 'a.txt').write_text('a')


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith('.lock'))


def test_builds_once_and_keeps_the_recipe(tmp_path):
    root = build_once(tmp_path / 'new' / 'set', RECIPE, fill)
    assert (root / 'sub' / 'a.txt').read_text() == 'a'
    assert read_marker(root) == RECIPE
    assert build_once(root, RECIPE, lambda folder: pytest.fail('built twice')) == root
    assert visible(root.parent) == ['set']


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failed_build_leaves_nothing(tmp_path, error):
    def fail(folder):
        fill(folder)
        raise error('stop')

    with pytest.raises(error, match='stop'):
        build_once(tmp_path / 'set', RECIPE, fail)
    assert visible(tmp_path) == []


def test_a_killed_build_leaves_no_half_and_is_swept_up(tmp_path):
    code = (
        'import sys, time\n'
        'from dat_mm.datasets.store import build_once\n'
        'def write(folder):\n'
        '    (folder / "half").write_text("")\n'
        '    print("writing", flush=True)\n'
        '    time.sleep(60)\n'
        f'build_once(sys.argv[1], {RECIPE!r}, write)\n'
    )
    command = [sys.executable, '-c', code, str(tmp_path / 'set')]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'writing\n'
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / 'set').exists()
    assert len(visible(tmp_path)) == 1
    build_once(tmp_path / 'set', RECIPE, fill)
    assert visible(tmp_path) == ['set']


def test_several_processes_at_once_build_once(tmp_path):
    code = (
        'import sys, time\n'
        'from dat_mm.datasets.store import build_once\n'
        'def write(folder):\n'
        '    print("built", flush=True)\n'
        '    time.sleep(0.3)\n'
        '    (folder / "whole").write_text("")\n'
        f'root = build_once(sys.argv[1], {RECIPE!r}, write)\n'
        'assert (root / "whole").is_file()\n'
    )
    command = [sys.executable, '-c', code, str(tmp_path / 'set')]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert ''.join(outputs) == 'built\n'


def test_without_locks_the_first_to_finish_wins(tmp_path, monkeypatch):
    monkeypatch.setattr('dat_mm.datasets.store.fcntl', None)

    def write(folder):
        (folder / 'mine').write_text('')
        if not (tmp_path / 'set').exists():
            build_once(tmp_path / 'set', RECIPE, fill)  # somebody else, meanwhile

    root = build_once(tmp_path / 'set', RECIPE, write)
    assert visible(root) == [MARKER, 'sub']
    assert visible(tmp_path) == ['set']


def test_another_recipe_is_refused_by_name(tmp_path):
    root = build_once(tmp_path / 'set', RECIPE, fill)
    with pytest.raises(FileExistsError, match=r'set was made with seed=1, not seed=2: .* remove it$'):
        build_once(root, {**RECIPE, 'seed': 2}, fill)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / 'precious').write_text('')
    with pytest.raises(FileExistsError, match='not made by dat_mm'):
        build_once(tmp_path / 'set', RECIPE, fill)
    assert visible(tmp_path / 'set') == ['precious']


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path):
    (tmp_path / 'disk' / 'set').mkdir(parents=True)
    (tmp_path / 'set').symlink_to(tmp_path / 'disk' / 'set')
    root = build_once(tmp_path / 'set', RECIPE, fill)
    assert root.is_symlink()
    assert visible(tmp_path / 'disk' / 'set') == [MARKER, 'sub']
