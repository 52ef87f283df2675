# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from dat_mm import DAT
from dat_mm.arch import POSITION_BIASES
from dat_mm.convert import convert
from dat_mm.weights import write_state_dict

pytestmark = pytest.mark.one_stack

STAGES = [dict(dim=32, heads=2, kinds='LD'), dict(dim=64, heads=4, kinds='SD', groups=2)]


def small(img_size=64, **options):
    return DAT(STAGES, **{'generation': 'dat', 'out_indices': (0, 1), 'img_size': img_size} | options)


def pretrained(path, **options):
    prefix = {key: options.pop(key) for key in ('prefix', 'strict') if key in options}
    model = small(init_cfg=dict(type='Pretrained', checkpoint=str(path), **prefix), **options)
    model.init_weights()
    return model


def assert_same(model, state_dict):
    for key, value in model.state_dict().items():
        assert torch.equal(value, state_dict[key]), key


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.'])
def test_files_of_any_prefix(tmp_path, prefix, suffix):
    source = small().state_dict()
    path = tmp_path / f'a{suffix}'
    write_state_dict({f'{prefix}{key}': value for key, value in source.items()}, path)
    assert_same(pretrained(path), source)


def test_files_of_detectors(tmp_path):
    source = small().state_dict()
    content = {f'backbone.{key}': value for key, value in source.items()} | {'neck.conv.weight': torch.ones(1)}
    torch.save({'meta': {}, 'state_dict': content, 'optimizer': {}}, tmp_path / 'a.pth')
    assert_same(pretrained(tmp_path / 'a.pth'), source)
    assert_same(pretrained(tmp_path / 'a.pth', prefix='backbone.'), source)


@pytest.mark.parametrize(('name', 'arch'), [('v1_tiny_224', 'dat-tiny'), ('v2_tiny_224', 'datpp-tiny')])
def test_official_files_into_a_dense_model(tmp_path, golden, name, arch):
    official = golden(name).state_dict()
    torch.save({'model': official}, tmp_path / 'official.pth')
    model = DAT(
        arch, out_indices=(1, 2, 3), init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'official.pth'))
    )
    model.init_weights()
    converted = convert(official)
    for key, value in model.state_dict().items():
        if not key.startswith(('norm1', 'norm2')):  # a classifier has no norm there
            assert torch.equal(value, converted[f'backbone.{key}']), key


def test_tables_are_resized_for_another_resolution(tmp_path):
    source = small(64)
    write_state_dict(source.state_dict(), tmp_path / 'a.pth')
    model = pretrained(tmp_path / 'a.pth', img_size=(96, 128), window_size=12)
    ours, theirs = model.state_dict(), source.state_dict()
    key = 'stages.0.blocks.1.attn.position_bias.table'
    assert ours[key].shape == (2, 47, 63) and theirs[key].shape == (2, 31, 31)
    expected = F.interpolate(theirs[key][None], size=(47, 63), mode='bicubic', align_corners=False)[0]
    torch.testing.assert_close(ours[key], expected)
    key = 'stages.0.blocks.0.attn.relative_position_bias_table'
    assert ours[key].shape == (23 * 23, 2)
    table = theirs[key].T.reshape(1, 2, 13, 13)
    expected = F.interpolate(table, size=(23, 23), mode='bicubic', align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(ours[key], expected)
    key = 'stages.0.blocks.0.attn.qkv.weight'
    assert torch.equal(ours[key], theirs[key])


def test_load_state_dict_resizes_too():
    source, model = small((64, 96)), small((128, 64))
    model.load_state_dict(source.state_dict())
    assert source.stages[0].blocks[1].attn.position_bias.table.shape == (2, 31, 47)


@pytest.mark.parametrize('name', POSITION_BIASES)
def test_every_position_bias_loads_at_another_resolution(name):
    source, model = small(64, position_bias=name), small((96, 128), position_bias=name)
    model.load_state_dict(source.state_dict())
    assert all(p.isfinite().all() for p in model.parameters())


def test_fixed_bias_is_resized_as_at_run_time():
    """A model of another resolution that loads the weights computes what their model computes at that size."""
    source = small(64, position_bias='fixed').eval()
    model = small(96, position_bias='fixed').eval()
    model.load_state_dict(source.state_dict())
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        for ours, theirs in zip(model(x), source(x), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_neighborhood_tables_never_change(tmp_path):
    options = dict(kinds=['ND', 'ND'], generation='datpp')
    source = small(64, **options)
    write_state_dict(source.state_dict(), tmp_path / 'a.pth')
    model = pretrained(tmp_path / 'a.pth', img_size=128, **options)
    key = 'stages.0.blocks.0.attn.neighborhood_bias_table'
    assert torch.equal(model.state_dict()[key], source.state_dict()[key])


TOTAL = 81


@pytest.mark.parametrize(
    ('change', 'options', 'message'),
    [
        (lambda w: {'head.weight': torch.ones(1)}, {}, '0 of the 81 tensors of the backbone'),
        (
            lambda w: {f'encoder.{k}': v for k, v in w.items()},
            {},
            r'0 of the 81 tensors.*77 missing.*81 unexpected: encoder',
        ),
        (lambda w: w, {'prefix': 'backbone.'}, "none of its 81 keys starts with 'backbone.'"),
        (lambda w: w | {'stem.conv.weight': torch.ones(32, 1, 4, 4)}, {}, r'80 of the 81.*\(32, 1, 4, 4\) in the file'),
        (
            lambda w: {k: v for k, v in w.items() if 'mlp' not in k},
            {},
            r'65 of the 81 .*16 missing: stages.0.blocks.0.mlp',
        ),
        (
            lambda w: {k.replace('stages.1', 'stages.2'): v for k, v in w.items()},
            {},
            'missing: stages.1.*unexpected: stages.2',
        ),
    ],
    ids=['nothing', 'prefix', 'wanted prefix', 'shape', 'missing', 'unexpected'],
)
def test_what_would_load_little_is_refused(tmp_path, change, options, message):
    model = small()
    assert len(model.state_dict()) == TOTAL
    torch.save({'model': change(dict(model.state_dict()))}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=message):
        pretrained(tmp_path / 'a.pth', **options)


def test_what_fits_is_loaded_on_demand(tmp_path):
    source = small().state_dict()
    write_state_dict(source | {'stem.conv.weight': torch.ones(32, 1, 4, 4)}, tmp_path / 'a.pth')
    model = pretrained(tmp_path / 'a.pth', strict=False)
    for key, value in model.state_dict().items():
        assert torch.equal(value, source[key]) == (key != 'stem.conv.weight')


def test_output_norms_may_differ(tmp_path):
    source = small(out_indices=(1,)).state_dict()
    write_state_dict(source, tmp_path / 'a.pth')
    model = pretrained(tmp_path / 'a.pth', out_indices=(0,))
    assert torch.equal(model.state_dict()['stem.conv.weight'], source['stem.conv.weight'])


def test_without_a_checkpoint_it_starts_from_scratch(monkeypatch):
    said = []
    monkeypatch.setattr('dat_mm.models.dat.print_log', lambda message, **_: said.append(message))
    model = small(init_cfg=dict(type='Pretrained', checkpoint=None))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    assert_same(model, before)
    assert len(said) == 1 and 'from scratch' in said[0]
