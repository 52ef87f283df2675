# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import copy
import io

import pytest
import torch
from mmengine.registry import MODELS as ROOT

from dat_mm import ARCHS, DAT, StageSpec, arch
from dat_mm.models import NeighborhoodAttention, WindowAttention
from dat_mm.models.deformable import DeformableAttention

ALL = (0, 1, 2, 3)
NANO = ('dat-nano', 'datpp-nano')
# Thousands of parameters of the papers' models, with the head for ImageNet.
PARAMETERS = {
    'dat-tiny': 28319,
    'dat-small': 49700,
    'dat-base': 87882,
    'datp-tiny': 22773,
    'datpp-tiny': 23963,
    'datpp-small': 53127,
    'datpp-base': 93691,
}


def parameters_with_head(model):
    dim = model.arch.stages[-1].dim
    return sum(p.numel() for p in model.parameters()) + dim * 1000 + 1000


@pytest.mark.parametrize('arch', PARAMETERS)
def test_parameter_counts(arch):
    with torch.device('meta'):
        assert round(parameters_with_head(DAT(arch)) / 1000) == PARAMETERS[arch]


def test_parameter_count_at_384():
    with torch.device('meta'):
        assert round(parameters_with_head(DAT('dat-base', img_size=384, window_size=12)) / 1000) == 88178


@pytest.mark.parametrize('arch', NANO)
def test_nano_archs_are_small(arch):
    assert 1e6 < sum(p.numel() for p in DAT(arch).parameters()) < 2e6


@pytest.mark.parametrize('arch', [*NANO, 'datp-tiny'])
def test_any_size(arch):
    model = DAT(arch, out_indices=ALL).eval()
    for height, width in ((32, 32), (33, 47), (37, 100), (224, 32), (65, 129)):
        with torch.no_grad():
            outputs = model(torch.randn(1, 3, height, width))
        sizes = [tuple(x.shape[2:]) for x in outputs]
        assert sizes == [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
        assert all(x.isfinite().all() for x in outputs)
        assert all(x.is_contiguous() for x in outputs)


@pytest.mark.parametrize('arch', ARCHS)
def test_every_parameter_gets_a_finite_gradient(arch):
    model = DAT(arch, out_indices=ALL, drop_path_rate=0.0)
    sum(x.square().mean() for x in model(torch.randn(1, 3, 64, 96))).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize('arch', NANO)
def test_eval_twice_and_reloaded_gives_the_same_bits(arch):
    model = DAT(arch, out_indices=ALL).eval()
    x = torch.randn(2, 3, 96, 64)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = DAT(arch, out_indices=ALL).eval()
    other.load_state_dict(torch.load(file))
    with torch.no_grad():
        for outputs in zip(model(x), model(x), other(x), copy.deepcopy(model)(x), strict=True):
            assert all(torch.equal(outputs[0], output) for output in outputs[1:])


@pytest.mark.parametrize('arch', NANO)
def test_memory_format_of_the_input_does_not_matter(arch):
    model = DAT(arch, out_indices=ALL).eval()
    x = torch.randn(2, 3, 70, 64)
    with torch.no_grad():
        for ours, theirs in zip(model(x), model(x.to(memory_format=torch.channels_last)), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('arch', NANO)
def test_autocast(arch, dtype):
    model = DAT(arch, out_indices=ALL).eval()
    x = torch.randn(1, 3, 64, 64)
    points = []
    for module in model.modules():
        if isinstance(module, DeformableAttention):
            module.offset_net.register_forward_hook(lambda module, args, output: points.append(output.dtype))
    with torch.no_grad():
        expected = model(x)
        with torch.autocast('cpu', dtype=dtype):
            outputs = model(x)
    assert set(points) == {torch.float32}  # coordinates are not for half precision
    for ours, theirs in zip(outputs, expected, strict=True):
        assert (ours.float() - theirs).norm() < 0.05 * theirs.norm()


def test_autocast_trains():
    model = DAT('datpp-nano')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = model(torch.randn(1, 3, 64, 64))[0].float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('arch', NANO)
def test_checkpointing_changes_nothing(arch):
    x = torch.randn(2, 3, 64, 64)
    results = []
    for with_cp in (False, True):
        torch.manual_seed(1)
        model = DAT(arch, with_cp=with_cp, drop_path_rate=0.2).train()
        out = model(x)[0]
        out.sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize('n', [-1, 0, 2, 4])
def test_frozen_stages(n):
    model = DAT('dat-nano', out_indices=ALL, frozen_stages=n, drop_path_rate=0.5).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    expected = ('stem.',) if n >= 0 else ()
    expected += tuple(f'{part}.{i}.' for i in range(n) for part in ('stages', 'downsamples'))
    expected += tuple(f'norm{i}.' for i in range(n))
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(expected)}
    assert [stage.training for stage in model.stages] == [i >= n for i in range(4)]
    out = model(torch.randn(1, 3, 32, 32))
    if n < 4:
        out[-1].sum().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if name in frozen)


def test_drop_path_grows_linearly():
    model = DAT('dat-tiny', drop_path_rate=0.11)
    rates = [block.drop_path2.rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.11 * i / 11 for i in range(12)])
    default = DAT('dat-tiny')
    assert default.stages[-1].blocks[-1].drop_path1.rate == pytest.approx(0.2)


def test_drop_path_keeps_the_mean():
    from dat_mm.models.layers import DropPath

    drop = DropPath(0.25).train()
    x = drop(torch.ones(20000, 1, 1))
    assert x.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float(x.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(drop.eval()(x), x)


def test_initial_values():
    model = DAT('datpp-tiny', out_indices=ALL)
    std = {DeformableAttention: 0.01, NeighborhoodAttention: 0.02}
    for module in model.modules():
        for kind, expected in std.items():
            if isinstance(module, kind):
                table = module.position_bias.table if kind is DeformableAttention else module.neighborhood_bias_table
                assert float(table.detach().std()) == pytest.approx(expected, rel=0.25)
    window = WindowAttention(96, 3)
    assert float(window.relative_position_bias_table.detach().std()) == pytest.approx(0.01, rel=0.25)
    # PyTorch's own defaults elsewhere: uniform within 1 / sqrt(fan in)
    weight = model.stages[2].blocks[0].mlp.linear1.weight.detach()
    assert float(weight.abs().max()) == pytest.approx(256**-0.5, rel=0.01)


def test_layer_depth():
    model = DAT('dat-tiny', out_indices=(2, 3))
    depth = {name: model.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in model.named_parameters()}
    assert {n for _, n in depth.values()} == {14}
    assert depth['stem.conv.weight'][0] == 0
    assert depth['stages.0.blocks.0.norm1.weight'][0] == 1
    assert depth['stages.2.blocks.5.mlp.linear1.weight'][0] == 10
    assert depth['downsamples.1.conv.weight'][0] == depth['stages.2.blocks.0.norm1.weight'][0] == 5
    assert depth['stages.3.blocks.1.attn.proj_q.weight'][0] == 12
    assert depth['norm3.weight'][0] == 13
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (13, 14)


def test_decay_by_plain_names():
    """mmengine's paramwise_cfg matches parts of names, and these parts find every norm and bias table."""
    from mmengine.optim import build_optim_wrapper

    model = DAT([{'dim': 32, 'heads': 2, 'kinds': 'LSND'}], out_indices=(0,))
    config = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.5),
        paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0), 'position_bias': dict(decay_mult=0.0)}),
    )
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    decayed = {id(p): group['weight_decay'] > 0 for group in groups for p in group['params']}
    names = {name for name, p in model.named_parameters() if not decayed[id(p)]}
    tables = {name.partition('attn.')[2] for name in names if 'table' in name}
    assert tables == {'relative_position_bias_table', 'position_bias.table'}
    assert {name for name, _ in model.named_parameters() if 'norm' in name} <= names
    assert not any('neighborhood_bias_table' in name for name in names)


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_built_from_every_scope(scope):
    if scope == 'mmengine':
        model = ROOT.build(dict(type='dat_mm.DAT', arch='dat-nano'))
    else:
        registry = pytest.importorskip(f'{scope}.registry')
        model = registry.MODELS.build(dict(type='dat_mm.DAT', arch='dat-nano'))
    assert type(model) is DAT


KINDS = {
    'all kinds': dict(arch=[StageSpec(32, 2, ''.join(arch.KINDS), reduction=2)], out_indices=(0,)),
    **{name: dict(position_bias=name) for name in arch.POSITION_BIASES},
    'pyramid': dict(kinds=['PP', 'PP', 'LD', 'LD'], reduction=[8, 4, 1, 1]),
    'no offsets': dict(offsets=False),
    'no offsets, datpp': dict(offsets=False, generation='datpp', key_stride=2),
    'range 4': dict(range_factor=4),
    'range 0': dict(range_factor=0),
    'strides': dict(kinds=['LD', 'LD', 'LD', 'LD'], groups=[1, 2, 2, 3], key_stride=[4, 2, 1, 1]),
    'stride of the kernel': dict(kinds=['LD', 'LD', 'LD', 'LD'], offset_kernel=4, key_stride=4, generation='datp'),
    'window 4': dict(window_size=4),
    'not square': dict(img_size=(96, 64)),
    'five stages': dict(arch=[StageSpec(16 * i, i, 'D', groups=i) for i in (1, 2, 2, 3, 3)], out_indices=(4,)),
}


@pytest.mark.parametrize('options', KINDS.values(), ids=KINDS)
def test_every_kind_of_attention_runs_and_learns(options):
    model = DAT(**{'arch': 'dat-nano', 'img_size': 64} | options)
    for size in ((64, 64), (33, 50)):
        out = model(torch.randn(2, 3, *size))[0]
        assert out.isfinite().all()
    out.square().mean().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    expected = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == expected
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert all('offset_net' in name for name in frozen) and bool(frozen) == (options.get('offsets') is False)


@pytest.mark.parametrize('rate', ['drop_rate', 'attn_drop_rate'])
@pytest.mark.parametrize('kind', sorted(set(arch.KINDS) - {'X'}))
def test_every_kind_of_attention_drops(kind, rate):
    """It takes the rates of its Site. X is a convolution, and its block has no dropout but that of the MLP."""
    attention = DAT([StageSpec(32, 2, kind, reduction=2)], out_indices=(0,), **{rate: 0.5}).stages[0].blocks[0].attn
    x = torch.randn(1, 14, 14, 32)
    assert not torch.equal(attention(x), attention(x))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'arch': 'dat-tinny'}, "arch='dat-tinny' is unknown: did you mean 'dat-tiny'"),
        ({'groups': 5}, 'stage 2: heads=8 is not a multiple of groups=5'),
        ({'kinds': ['LS', 'LS', 'LDL', 'LD']}, "stage 2: kinds='LDL' has 3 letters, not depth=2"),
        ({'kinds': ['LS', 'LS', 'LQ', 'LD']}, r"stage 2: kinds='LQ' has \['Q'\]"),
        ({'kinds': ['LS', 'LS']}, 'has 2 values for 4 stages'),
        ({'position_bias': 'absolute'}, "position_bias='absolute' is not one of relative, depthwise"),
        ({'arch': 'datpp-nano', 'window_size': 12}, 'window_size=12 is even'),
        ({'generation': 'dat++'}, "generation='dat\\+\\+' is not one of dat, datp, datpp"),
        ({'out_indices': (1, 4)}, r'out_indices=\(1, 4\): 4 is out of range, there are 4 stages'),
        ({'frozen_stages': 5}, 'frozen_stages=5 is out of range'),
        ({'backend': 'magic'}, "backend='magic' is unknown: there are auto"),
        ({'img_size': 0}, 'img_size=0 is not a positive number'),
        ({'arch': []}, r'arch=\[\] has no stages'),
        ({'arch': [dict(dim=30, heads=4, kinds='L')]}, 'dim=30 is not a multiple of heads=4'),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DAT(**{'arch': 'dat-nano'} | options)


@pytest.mark.parametrize('options', [{'widnow_size': 7}, {'arch': [dict(dim=32, heads=4, kinds='L', head=3)]}], ids=str)
def test_misspelled_arguments_are_named(options):
    with pytest.raises(TypeError, match=r"unexpected keyword argument '(widnow_size|head)'"):
        DAT(**{'arch': 'dat-nano'} | options)


@pytest.mark.parametrize('shape', [(1, 4, 64, 64), (3, 64, 64), (1, 1, 64, 64)], ids=str)
def test_wrong_inputs_are_named(shape):
    with pytest.raises(ValueError, match=str(shape).replace('(', r'\(').replace(')', r'\)') + r', not \(B, 3, H, W\)'):
        DAT('dat-nano')(torch.zeros(shape))


@pytest.mark.one_stack
@pytest.mark.parametrize('arch', NANO)
def test_compiles_in_one_graph(arch):
    model = DAT(arch, out_indices=ALL).eval()
    x = torch.randn(1, 3, 64, 96)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        for ours, theirs in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(ours, theirs)
    compiled(x)[-1].sum().backward()
    assert all(p.grad.isfinite().all() for name, p in model.named_parameters() if name.startswith('stem'))


@pytest.mark.one_stack
@pytest.mark.slow
@pytest.mark.parametrize('arch', NANO)
def test_exports_with_dynamic_sizes(arch):
    model = DAT(arch, out_indices=ALL).eval()
    height, width = torch.export.Dim('h', min=2, max=40), torch.export.Dim('w', min=2, max=40)
    exported = torch.export.export(
        model, (torch.randn(1, 3, 96, 128),), dynamic_shapes=({2: 32 * height, 3: 32 * width},)
    ).module()
    for size in ((96, 128), (64, 64), (224, 256), (480, 96)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            for ours, theirs in zip(exported(x), model(x), strict=True):
                torch.testing.assert_close(ours, theirs)
