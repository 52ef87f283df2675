# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What people get from a wheel, a source archive and an editable install. All are built offline, from a copy."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from dat_mm.version import __version__

ROOT = Path(__file__).resolve().parents[1]
MIM = ('configs', 'tools', 'model-index.yml')


def files_of(tree, name):
    """The files below tree/name, or the file itself. There are none where a folder is missing."""
    top = tree / name
    found = [top] if top.is_file() else [path for path in top.rglob('*') if path.is_file()]
    return {path.relative_to(tree).as_posix() for path in found if '__pycache__' not in path.parts}


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The source tree, the names in the wheel and in the archive, and the metadata.

    The tree is a copy of this one, with one more config and one more tool.
    """
    tree = tmp_path_factory.mktemp('tree') / 'repository'
    skip = shutil.ignore_patterns(
        '.git', '.venv*', 'build', 'dist', '*.egg-info', '.mim', '.*_cache', 'work_dirs', 'data'
    )
    shutil.copytree(ROOT, tree, ignore=skip)
    for name in ('configs/made_up/leaf.py', 'tools/made_up.sh'):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text('# made by a test\n')
    command = [
        sys.executable,
        '-m',
        'build',
        '--no-isolation',
        '--outdir',
        'dist',
    ]  # the archive, then the wheel from it
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    with tarfile.open(next((tree / 'dist').glob('*.tar.gz'))) as archive:
        in_archive = {name.partition('/')[2] for name in archive.getnames()}
    with zipfile.ZipFile(next((tree / 'dist').glob('*.whl'))) as wheel:
        in_wheel = set(wheel.namelist())
        metadata = wheel.read(next(name for name in in_wheel if name.endswith('METADATA'))).decode()
    return tree, in_wheel, in_archive, metadata


def test_wheel_carries_mim(built):
    tree, in_wheel, _, _ = built
    assert {'dat_mm/.mim/configs/made_up/leaf.py', 'dat_mm/.mim/tools/made_up.sh'} <= in_wheel
    for name in MIM:
        assert {f'dat_mm/.mim/{file}' for file in files_of(tree, name)} <= in_wheel


def test_wheel_carries_the_whole_package(built):
    tree, in_wheel, _, _ = built
    assert files_of(tree, 'dat_mm') <= in_wheel


def test_wheel_installs_only_dat_mm(built):
    _, in_wheel, _, _ = built
    tops = {name.partition('/')[0] for name in in_wheel}
    assert tops == {
        'dat_mm',
        f'dat_mm-{__version__}.dist-info',
    }  # so no top-level `tests`, `configs`, `tools`


def test_source_archive_builds_the_same(built):
    tree, _, in_archive, _ = built
    for name in MIM:
        assert files_of(tree, name) <= in_archive
    assert {'setup.py', 'pyproject.toml', 'LICENSE'} <= in_archive


def test_version_is_in_one_place(built):
    _, _, _, metadata = built
    assert f'\nVersion: {__version__}\n' in metadata
    assert version('dat-mm') == __version__
    elsewhere = [name for name in ('setup.py', 'pyproject.toml') if __version__ in (ROOT / name).read_text()]
    assert not elsewhere


@pytest.mark.parametrize('stack', ['openmmlab', 'onedl'])
def test_extras_admit_the_tested_versions(built, stack):
    """Every pin of requirements/STACK.txt satisfies what the extra of the same name asks for."""
    from packaging.requirements import Requirement

    _, _, _, metadata = built
    asked = [Requirement(line) for line in re.findall(r'^Requires-Dist: (.+)$', metadata, re.MULTILINE)]
    asked = {req.name: req for req in asked if req.marker and req.marker.evaluate({'extra': stack})}
    lines = (ROOT / 'requirements' / f'{stack}.txt').read_text().splitlines()
    pins = dict(line.split('==') for line in lines if '==' in line and 'mm' in line)
    assert len(pins) == 5
    for name, pinned in pins.items():
        assert asked[name].specifier.contains(pinned)


def test_editable_install_carries_mim():
    import dat_mm

    mim = Path(dat_mm.__path__[0]) / '.mim'
    for name in MIM:
        if (ROOT / name).exists():
            assert (mim / name).resolve() == (ROOT / name).resolve()


@pytest.mark.slow
def test_mim_trains_from_the_wheel(built, tmp_path):
    """`mim train dat_mm CONFIG` works far from the clone.

    Where openmim is missing, the test does what it would do: find the file and start the script.
    """
    pytest.importorskip('mmpretrain')
    site, name = tmp_path / 'site', 'datpp-nano_1xb32_shapes.py'
    with zipfile.ZipFile(next((built[0] / 'dist').glob('*.whl'))) as wheel:
        wheel.extractall(site)
    phases, sizes = ('train', 'val'), {'num_train': 8, 'num_val': 2}
    options = [
        *('--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.batch_size=4'),
        *(f'{phase}_dataloader.num_workers=0' for phase in phases),
        *(f'{phase}_dataloader.dataset.make.{key}={count}' for phase in phases for key, count in sizes.items()),
    ]
    if find_spec('mim'):
        command = ['-m', 'mim', 'train', 'dat_mm', name, '--yes', *options]
    else:
        (config,) = site.rglob(name)
        command = [site / 'dat_mm/.mim/tools/train.py', config, '--launcher', 'none', *options]
    environment = {**os.environ, 'PYTHONPATH': str(site), 'OMP_NUM_THREADS': '1'}
    environment.pop('DAT_MM_DATA', None)
    done = subprocess.run([sys.executable, *command], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / 'work_dirs' / Path(name).stem / 'epoch_1.pth').is_file()
    assert (tmp_path / 'data/shapes').is_dir()


def test_tests_are_not_importable():
    """Other packages install a top-level `tests`. Ours must neither be taken for theirs nor replace it."""
    assert not (ROOT / 'tests' / '__init__.py').exists()
    find = 'from importlib.util import find_spec; print(find_spec("tests"))'
    found = subprocess.check_output([sys.executable, '-c', find], cwd='/', text=True)
    assert str(ROOT / 'tests') not in found
