# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Users can add kinds of attention and position biases. A name that nobody added is an error wherever it is given."""

import copy
import pickle
import sys
import warnings

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT

from dat_mm import ARCHS, DAT, DeformableAttention, StageSpec, arch, ops, register_attention, set_backend
from dat_mm.models import (
    ATTENTION,
    POSITION_BIAS,
    GlobalAttention,
    NeighborhoodAttention,
    PyramidAttention,
    WindowAttention,
)

OWN = """
import torch
from torch import nn

from dat_mm import register_attention, register_position_bias
from dat_mm.models import Bias, PositionBias


@register_attention('A', 'the mean of each row')
class RowMean(nn.Module):
    def __init__(self, dim, map_size):
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        self.map_size = map_size

    @classmethod
    def from_spec(cls, spec, site):
        return cls(spec.dim, site.map_size)

    def forward(self, x):
        return self.proj(x.mean(2, keepdim=True)).expand_as(x)


@register_position_bias('constant', 'a number for each head')
class Constant(PositionBias):
    def __init__(self, **site):
        super().__init__(**site)
        self.offset = nn.Parameter(torch.zeros(self.heads, 1, 1))

    def forward(self, q, points, key_map_size):
        return Bias(logits=self.offset)
"""
CONFIG = """
custom_imports = dict(imports=['dat_mm', 'own_attention'], allow_failed_imports=False)
model = dict(
    type='dat_mm.DAT', arch='dat-nano', img_size=64,
    kinds=['LA', 'LS', 'AD', 'LD'], position_bias=['none', 'none', 'constant', 'constant'],
)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A config that names a file with its own kind of attention and position bias. The tables are restored after it."""
    (tmp_path / 'own_attention.py').write_text(OWN)
    (tmp_path / 'config.py').write_text(CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    tables = (ATTENTION, POSITION_BIAS, arch.KINDS, arch.POSITION_BIASES)
    before = [dict(table) for table in tables]
    yield tmp_path / 'config.py'
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    sys.modules.pop('own_attention', None)


def test_a_config_brings_its_own_attention_and_position_bias(own):
    cfg = Config.fromfile(own)
    model = ROOT.build(cfg.model)
    assert type(model.stages[0].blocks[1].attn).__name__ == 'RowMean'
    assert type(model.stages[2].blocks[1].attn.position_bias).__name__ == 'Constant'
    assert model.stages[2].blocks[0].attn.map_size == (4, 4)
    model(torch.randn(2, 3, 64, 96))[0].square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match=r"kinds='LQ' has .*A \(the mean of each row\)"):
        StageSpec(32, 2, 'LQ')


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="kind 'D' is there already: deformable attention"):
        register_attention('D', 'mine')(DeformableAttention)
    with pytest.raises(ValueError, match="kind 'DD' has 2 letters"):
        register_attention('DD', 'mine')
    with pytest.raises(TypeError, match='Linear has no classmethod from_spec'):
        register_attention('Z', 'mine')(torch.nn.Linear)
    assert 'Z' not in arch.KINDS


def test_tables_have_the_same_names():
    """A StageSpec takes exactly the names that can be built."""
    assert set(arch.KINDS) == {*ATTENTION, 'X'}
    assert set(arch.POSITION_BIASES) == set(POSITION_BIAS)


CLASSES = [
    (WindowAttention, {}),
    (NeighborhoodAttention, {}),
    (GlobalAttention, {}),
    (PyramidAttention, {'reduction': 2}),
    (DeformableAttention, {'map_size': 7}),
]


@pytest.mark.parametrize(('attention', 'options'), CLASSES, ids=lambda x: getattr(x, '__name__', ''))
def test_an_unknown_backend_raises_wherever_it_is_given(attention, options):
    with pytest.raises(ValueError, match="backend='magic' is unknown: there are auto, triton"):
        attention(32, 2, **options, backend='magic')
    with pytest.raises(ValueError, match="backend='magic' is unknown: there are auto"):
        set_backend(attention(32, 2, **options), 'magic')


@pytest.mark.parametrize(
    'make',
    [
        lambda name: StageSpec(32, 2, 'D', position_bias=name),
        lambda name: DAT('dat-nano', position_bias=name),
        lambda name: DeformableAttention(32, 2, map_size=7, position_bias=name),
    ],
)
def test_an_unknown_position_bias_raises_wherever_it_is_given(make):
    with pytest.raises(ValueError, match="position_bias='magic' is not one of relative"):
        make('magic')


@pytest.mark.parametrize('kinds', ['Q', 'LDQ', 'd'])
def test_an_unknown_kind_raises_wherever_it_is_given(kinds):
    for make in (lambda: StageSpec(32, 2, kinds), lambda: DAT([dict(dim=32, heads=2, kinds=kinds)], out_indices=(0,))):
        with pytest.raises(ValueError, match=f'kinds={kinds!r} has '):
            make()


def test_a_position_bias_that_is_not_used_is_told():
    with pytest.warns(UserWarning, match="position_bias='relative' is not used: offsets=False with 'datpp'"):
        asked = DeformableAttention(32, 2, map_size=7, offsets=False, position_bias='relative')
    with pytest.warns(UserWarning, match="position_bias='log' is not used"):
        DAT('datpp-nano', offsets=False, position_bias='log')
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # where nothing was asked for, nothing is said
        model = DAT('datpp-nano', offsets=False)
        DeformableAttention(32, 2, map_size=7, offsets=False, position_bias='none')
        DAT('dat-nano', offsets=False)
    assert {spec.position_bias for spec in model.arch.stages} == {'none'}
    assert asked.state_dict().keys() == model.stages[0].blocks[1].attn.state_dict().keys()


def test_global_attention_has_a_name():
    torch.manual_seed(1)
    named = DAT('dat-nano', kinds=['LS', 'LS', 'LG', 'LD']).eval()
    with pytest.warns(UserWarning, match='reduction=1 reduces nothing: this is GlobalAttention, kind G'):
        as_before = DAT('dat-nano', kinds=['LS', 'LS', 'LP', 'LD']).eval()
    as_before.load_state_dict(named.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(named(x)[0], as_before(x)[0])


@pytest.mark.parametrize('name', ['dat-nano', 'datpp-nano'])
def test_backends_are_set_on_a_finished_model_and_restored(name):
    model = DAT(name).eval()
    attention = model.stages[2].blocks[1].attn
    attention.backend = 'dense'
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)[0]
        with set_backend(model, 'reference'):
            with_backend = [module.backend for module in model.modules() if hasattr(module, 'backend')]
            torch.testing.assert_close(model(x)[0], expected)
    assert set(with_backend) == {'reference'} and len(with_backend) > 30
    assert attention.backend == 'dense' and model.stages[0].blocks[0].mlp.backend == 'auto'
    set_backend(model, 'separable')
    assert attention.backend == 'separable'


NAMES = dict.fromkeys(name for table in ops.backends.TABLES for name in table)


@pytest.mark.parametrize('generation', ['dat', 'datpp'])
@pytest.mark.parametrize('backend', [name for name in NAMES if name != 'triton'])
def test_a_model_takes_the_name_of_any_backend(generation, backend):
    """An op without a backend of that name chooses for itself, in every kind of attention."""
    stages = [StageSpec(32, 2, ''.join(arch.KINDS), reduction=2)]
    model = DAT(stages, generation=generation, out_indices=(0,), backend=backend).eval()
    if backend == 'onednn' and not ops.backends.onednn.AVAILABLE:
        pytest.skip('this PyTorch has no oneDNN')
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64))[0].isfinite().all()


def test_keys_of_earlier_versions_load(tmp_path):
    """In earlier versions, biases were parameters of the attention itself and not modules."""
    from dat_mm.engine.checkpoints import check_fit
    from dat_mm.models.pretrained import load_pretrained
    from dat_mm.weights import write_state_dict

    for options in ({}, {'position_bias': 'log'}, {'position_bias': 'depthwise'}):
        model, other = (DAT('dat-nano', **options) for _ in range(2))
        old = {key.replace('.position_bias.', '.position_bias_'): value for key, value in model.state_dict().items()}
        assert old.keys() != model.state_dict().keys()
        other.load_state_dict(old)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
        check_fit(model, old, 'old.pth')
        write_state_dict(old, tmp_path / 'old.pth')
        load_pretrained(DAT('dat-nano', **options), tmp_path / 'old.pth')
        attention = model.stages[3].blocks[1].attn
        prefix = 'stages.3.blocks.1.attn.'
        attention.load_state_dict({k.removeprefix(prefix): v for k, v in old.items() if k.startswith(prefix)})


@pytest.mark.parametrize('options', [{}, {'position_bias': 'log'}], ids=str)
def test_a_model_is_pickled_and_copied_with_its_hooks(options):
    """The hooks that fit a state dict were lambdas: no pickle took them, and those of a copy were of the original."""
    model = DAT('dat-nano', **options)
    other = DAT('dat-nano', img_size=96, **options).state_dict()
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        twin.load_state_dict(other)
        (hook,) = twin._load_state_dict_pre_hooks.values()
        assert getattr(hook, 'hook', hook).__self__ is twin


def test_archs_are_of_known_kinds():
    for entry in ARCHS.values():
        assert all(set(stage.kinds) <= set(arch.KINDS) for stage in entry.stages)
