# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Imports point one way. No toolbox is imported at module level, and only files of kernels import triton."""

import ast
import os
import sys
from pathlib import Path

import pytest
from runs import python_path, run_alone

pytestmark = pytest.mark.one_stack

PACKAGE = Path(__file__).parents[1] / 'dat_mm'
FILES = sorted(PACKAGE.rglob('*.py'))
# Lowest first: a part imports from those below it, and from those beside it.
LAYERS = [
    ['version'],
    ['arch', 'cache', 'errors', 'tool'],
    ['registry', 'ops', 'untrusted'],
    ['convert'],
    ['weights'],
    ['models'],
    ['complexity'],
    ['datasets', 'engine'],
    ['visualize', 'deploy'],
    ['commands', 'benchmark'],
    ['doctor', 'export'],
]
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}
TOOLBOXES = {'mmdet', 'mmseg', 'mmpretrain', 'mmcv'}
TORCH_ONLY = {'ops', 'untrusted', 'arch', 'cache', 'version', 'errors', 'tool', 'convert', 'weights'}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports(path, everywhere=False):
    """The absolute names of what a file imports, at module level or everywhere."""
    tree = ast.parse(path.read_text())
    package = ('dat_mm', *path.relative_to(PACKAGE).parts[:-1])
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = '.'.join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f'{module}.{alias.name}' for alias in node.names)
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    if part == '__init__':
        return
    assert part in HEIGHT, f'{part} is new: say in LAYERS where it stands'
    for name in imports(path, everywhere=True):
        parts = name.split('.')
        if parts[0] == 'dat_mm' and len(parts) > 1 and parts[1] in HEIGHT:
            assert HEIGHT[parts[1]] <= HEIGHT[part], f'{path.name} imports {name}'


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_toolbox_at_module_level(path):
    tops = {name.split('.')[0] for name in imports(path)}
    lazily = PACKAGE / 'datasets'
    if lazily not in path.parents:
        assert not tops & TOOLBOXES
    if part_of(path) in TORCH_ONLY:
        assert not {name.split('.')[0] for name in imports(path, everywhere=True)} & (TOOLBOXES | {'mmengine'})
    assert 'triton' not in tops or path.name.endswith('_kernels.py')
    if not path.name.endswith('_kernels.py'):
        assert not any(name.endswith('_kernels') for name in imports(path)), 'kernels are imported when they run'


def test_the_rule_sees_imports():
    found = set(imports(PACKAGE / 'models' / 'dat.py'))
    assert {'dat_mm.models.blocks', 'dat_mm.arch'} <= found
    assert 'mmengine.model' in imports(PACKAGE / 'models' / 'base.py')
    assert 'dat_mm.registry' in imports(PACKAGE / 'models' / 'toolboxes.py')


ALONE = """
import sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'matplotlib', 'cv2', 'PIL', 'timm'):
    sys.modules[name] = None  # as if it was not installed
import logging, torch
logging.basicConfig(level='INFO', format='%(message)s', stream=sys.stdout)
from dat_mm import DAT
torch.manual_seed(0)
trained = DAT('datpp-nano', with_cp='auto')
trained(torch.randn(1, 3, 64, 64))[0].mean().backward()
torch.save(dict(state_dict=trained.state_dict()), 'nano.pth')
init_cfg = dict(type='Pretrained', checkpoint='nano.pth')
loaded = DAT('datpp-nano', init_cfg=init_cfg)
loaded.init_weights()
x = torch.randn(1, 3, 64, 64)
assert torch.equal(loaded.eval()(x)[0], trained.eval()(x)[0])
for init_cfg, rule in ((dict(type='Xavier', layer='Linear'), 'needs mmengine'), (None, None)):
    try:
        DAT('datpp-nano', init_cfg=init_cfg).init_weights()
        assert rule is None
    except ValueError as error:
        assert rule in str(error), error
"""


def run_code(code, folder):
    environment = {**os.environ, 'PYTHONPATH': python_path(None)}
    return run_alone([sys.executable, '-W', 'ignore', '-c', code], cwd=folder, env=environment)


def test_the_backbone_needs_torch_alone(tmp_path):
    """It is made, trained, loaded from its init_cfg and run where torch and what it needs is all there is."""
    done = run_code(ALONE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'all loaded' in done.stdout and "with_cp='auto'" in done.stdout


@pytest.mark.slow
def test_a_bare_backbone_is_exported_by_torch_alone(tmp_path):
    pytest.importorskip('onnxscript')
    command = ['export', 'datpp-nano', 'nano.pth', 'nano.onnx', '--shape', '64', '64', '--check']
    export = f'{ALONE}\nsys.argv = {command!r}\nimport runpy\nrunpy.run_module("dat_mm.export", run_name="__main__")'
    done = run_code(export, tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'stage4' in done.stdout and (tmp_path / 'nano.onnx').stat().st_size > 4e6
