# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Hooks on a module fire once for each forward of a model, with the whole map. Models leave speed to the ops."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

from dat_mm import ARCHS, DAT, StageSpec
from dat_mm.arch import KINDS as LETTERS
from dat_mm.arch import POSITION_BIASES
from dat_mm.models import layers
from dat_mm.ops import parts

pytestmark = pytest.mark.one_stack

MODELS = sorted((Path(__file__).parents[2] / 'dat_mm/models').glob('*.py'))


def watch(modules, seen):
    """Notes the shape of each output under the name of its module."""

    def note(name):
        return lambda module, args, output: seen.setdefault(name, []).append(getattr(output, 'shape', None))

    return [module.register_forward_hook(note(name)) for name, module in modules.items()]


def called(model):
    """All modules but the containers, which have no forward."""
    return {name: module for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)}


@pytest.mark.parametrize('arch', ARCHS)
def test_every_hook_fires_once_with_the_whole_map(arch, monkeypatch):
    """It does with gradients, and without them, where maps would otherwise be made in parts."""
    model = DAT(arch, out_indices=(0, 1, 2, 3)).eval()
    modules, x = called(model), torch.randn(2, 3, 70, 64)
    kept, seen = {}, {}
    handles = watch(modules, kept)
    model(x)
    for handle in handles:
        handle.remove()
    monkeypatch.setattr(parts, 'IN_CACHE', 1)
    watch(modules, seen)
    with torch.no_grad():
        model(x)
    assert {name: len(shapes) for name, shapes in seen.items()} == dict.fromkeys(modules, 1)
    assert seen == kept


KINDS = [
    dict(arch=[StageSpec(32, 2, ''.join(LETTERS), reduction=2)], out_indices=(0,), drop_rate=0.1),
    *(dict(arch='dat-nano', position_bias=name, drop_path_rate=0.5) for name in POSITION_BIASES),
]


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('options', KINDS, ids=lambda options: options.get('position_bias', 'all kinds'))
def test_one_watcher_is_enough(options, training):
    """A hook on one module alone is called once too, whatever the kind of attention or position bias."""
    model = DAT(**{'img_size': 64, 'out_indices': (0, 1, 2, 3)} | options).train(training)
    x = torch.randn(2, 3, 32, 32)
    each = {(type(module), name.split('.')[-1]): (name, module) for name, module in called(model).items()}
    for name, module in each.values():
        seen = {}
        (handle,) = watch({name: module}, seen)
        with torch.no_grad():
            model(x)
        handle.remove()
        assert len(seen[name]) == 1, name


def test_watching_changes_nothing():
    model, x = DAT('datpp-nano', out_indices=(0, 1, 2, 3)).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        watch(called(model), {})
        for ours, theirs in zip(model(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_in_place_of_another_is_called():
    """Adapters and quantised layers take the place of linear layers. To use their weights alone would be wrong."""
    mlp, x = layers.MLP(8, 16).eval(), torch.randn(1, 3, 3, 8)
    other = Doubled(16, 8)
    other.load_state_dict(mlp.linear2.state_dict())
    with torch.no_grad():
        expected = 2 * mlp(x)
        mlp.linear2 = other
        torch.testing.assert_close(mlp(x), expected)


def test_a_hook_on_all_modules_counts():
    names = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: names.append(type(module).__name__))
    try:
        with torch.no_grad():
            layers.MLP(8, 16)(torch.randn(1, 3, 3, 8))
    finally:
        handle.remove()
    assert names == ['Projection', 'Dropout', 'Projection', 'Dropout', 'MLP']


FORBIDDEN = {
    *('is_cuda', 'is_cpu', 'cuda', 'mkldnn', 'is_available', 'is_meta'),
    *('is_grad_enabled', 'requires_grad', 'is_inference_mode_enabled', 'needs_gradient', 'set_grad_enabled'),
    *('compiling', 'exporting', 'is_compiling', 'is_exporting', 'compiler', 'jit', 'tracing'),
    *('autocast', 'is_autocast_enabled', 'IN_CACHE', 'lru_cache', 'cache'),
}


def names_in(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr, node
        elif isinstance(node, ast.Name):
            yield node.id, node
        elif isinstance(node, ast.alias):
            yield from ((part, node) for part in node.name.split('.'))


@pytest.mark.parametrize('path', MODELS, ids=lambda path: path.stem)
def test_models_ask_for_nothing(path):
    """Only the ops may ask about a device, grad mode, a compiler, an export or a cache."""
    tree = ast.parse(path.read_text())
    names = dict(names_in(tree))
    assert not FORBIDDEN & set(names)
    on_device = [node for name, node in names_in(tree) if name == 'type' and isinstance(node, ast.Attribute)]
    assert not [node for node in on_device if getattr(node.value, 'attr', '') == 'device']


def test_the_rule_sees_what_is_asked():
    tree = ast.parse('if x.device.type == "cpu" and torch.compiler.is_compiling(): pass')
    assert {'type', 'device', 'compiler', 'is_compiling'} <= {name for name, _ in names_in(tree)}
