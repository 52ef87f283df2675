# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Networks, and single deformable attentions with every gradient, give the numbers of the published code."""

import pytest
import torch
from op_cases import device_of

from dat_mm import DAT, DeformableAttention
from dat_mm.convert import convert, rename
from dat_mm.models.position_bias import FixedTable, LogDisplacement
from dat_mm.ops.backends import DEFORMABLE, TABLES
from dat_mm.ops.fused import interprets

pytestmark = pytest.mark.one_stack

TOLERANCE = 1e-4
BLOCKS = [
    *('v1_block_10x14', 'v1_block_14x14', 'v1_block_7x7', 'v1_block_tanh', 'v2_block_cpb', 'v2_block_dwc'),
    *('v2_block_fixed', 'v2_block_k4s4', 'v2_block_none', 'v2_block_nooff', 'v2_block_orf2', 'v2_block_orf2_rect'),
    *('v2_block_s2', 'v2_block_s8'),
]


def position_bias(args, convention):
    if not args['use_pe'] or (args['no_off'] and convention == 'datpp'):  # the published code drops it then
        return 'none'
    for flag, name in (('dwc_pe', 'depthwise'), ('fixed_pe', 'fixed'), ('log_cpb', 'log')):
        if args.get(flag):
            return name
    return 'relative'


def block_of(case, name, backend):
    args, convention = case.info['args'], 'dat' if name.startswith('v1') else 'datpp'
    module = DeformableAttention(
        args['n_heads'] * args['n_head_channels'],
        args['n_heads'],
        map_size=args['q_size'],
        groups=args['n_groups'],
        key_stride=args['stride'],
        offset_kernel=args['ksize'] if 'ksize' in args else (9, 7, 5, 3)[args['stage_idx']],
        range_factor=args['offset_range_factor'],
        offsets=not args['no_off'],
        position_bias=position_bias(args, convention),
        convention=convention,
        backend=backend,
    )
    block = 'stages.0.attns.0.'
    keys = {key: rename(block + key).removeprefix('stages.0.blocks.0.attn.') for key in case.shapes}
    parameters = dict(module.named_parameters())
    module.load_state_dict({ours: case.weight(key).view_as(parameters[ours]) for key, ours in keys.items()})
    return module, {key: parameters[ours] for key, ours in keys.items()}


def skip_minutes(backend):
    if backend == 'triton' and interprets():
        pytest.skip('takes minutes where Triton is interpreted')


@pytest.mark.parametrize('backend', DEFORMABLE)
@pytest.mark.parametrize('name', BLOCKS)
def test_block_and_its_gradients(golden, name, backend):
    if name in ('v1_block_7x7', 'v1_block_10x14', 'v1_block_14x14'):
        skip_minutes(backend)
    case = golden(name)
    module, parameters = block_of(case, name, backend)
    module.to(device_of(backend))
    x = case.input().to(device_of(backend)).requires_grad_()
    takes_tables = backend in ('portable', 'separable', 'triton')
    if takes_tables and isinstance(module.position_bias, FixedTable | LogDisplacement):
        with pytest.raises(RuntimeError, match=f"backend '{backend}': "):
            module(x.permute(0, 2, 3, 1))
        return
    y = module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    y.backward(case.normal(int(case['seed']) + 1, y.shape).to(y.device))
    errors = {'y': case.error('y', y), 'dx': case.error('dx', x.grad)}
    if module.offsets:
        errors['pos'] = case.error('pos', module.points(x.permute(0, 2, 3, 1)))
    for key, parameter in parameters.items():
        if not module.offsets and key.startswith('conv_offset'):
            assert not parameter.requires_grad
        elif key != 'proj_k.bias':
            errors[key] = case.error(f'grad.{key}', parameter.grad)
    assert max(errors.values()) < TOLERANCE, errors
    # Adding a constant to every key cancels in the softmax.
    assert parameters['proj_k.bias'].grad.abs().max() < 1e-5 * parameters['proj_k.weight'].grad.abs().max()


@pytest.mark.parametrize('backend', dict.fromkeys(name for table in TABLES for name in table))
@pytest.mark.parametrize(
    ('name', 'arch', 'out_indices'),
    [
        ('v1_tiny_224', 'dat-tiny', (3,)),
        ('v2_tiny_224', 'datpp-tiny', (3,)),
        ('det_tiny_224x320', 'datpp-tiny', (0, 1, 2, 3)),
    ],
)
def test_network(golden, name, arch, out_indices, backend):
    skip_minutes(backend)
    case = golden(name)
    weights = convert(case.state_dict())
    backbone = {key[len('backbone.') :]: value for key, value in weights.items() if key.startswith('backbone.')}
    model = DAT(arch, out_indices=out_indices, backend=backend).eval()
    model.load_state_dict(backbone)
    maps = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, args, output: maps.append(output.permute(0, 3, 1, 2)))
    model.to(device_of(backend))
    with torch.no_grad():
        outputs = [x.cpu() for x in model(case.input().to(device_of(backend)))]
    errors = {f'stage{i}': case.error(f'stage{i}', x) for i, x in enumerate(maps)}
    if 'logits' in case:
        logits = outputs[-1].mean((2, 3)) @ weights['head.fc.weight'].T + weights['head.fc.bias']
        errors['logits'] = case.error('logits', logits)
    else:
        errors |= {f'out{i}': case.error(f'out{i}', x) for i, x in enumerate(outputs)}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize('arch', ['dat-nano', 'datpp-nano'])
def test_what_golden_numbers_cannot_see(arch):
    """Within the tolerance of golden numbers, a norm's epsilon or an approximate GELU would not be seen."""
    model = DAT(arch, out_indices=(0, 1, 2, 3))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
    calls = []
    original = torch.nn.functional.gelu

    def gelu(x, approximate='none'):
        calls.append(approximate)
        return original(x, approximate=approximate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, 'gelu', gelu)
        model(torch.randn(1, 3, 32, 32))
    assert set(calls) == {'none'}
    assert len(calls) >= sum(len(stage.blocks) for stage in model.stages)
