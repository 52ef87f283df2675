# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What a backward makes again: recipes for cheap tensors, and the choice of with_cp='auto'."""

import copy

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmengine')

from dat_mm import DAT
from dat_mm.ops import recomputing
from dat_mm.ops.recomputing import Cost, choose, keep, recompute, remake
from dat_mm.ops.remaking import cheaply, remaking

pytestmark = pytest.mark.one_stack

NANO = ['dat-nano', 'datpp-nano']


def gradients(model, x, steps=3, **autocast):
    """The output and all gradients of a training step, after some others."""
    torch.manual_seed(1)
    for _ in range(steps):
        model.zero_grad()
        with torch.autocast('cpu', **{'enabled': False, **autocast}):
            out = model(x)[0].float()
        out.square().sum().backward()
    return [out.detach(), *(p.grad for p in model.parameters())]


def built(arch, with_cp, **options):
    torch.manual_seed(0)
    return DAT(arch, with_cp=with_cp, drop_path_rate=0.3, **options).train()


@pytest.mark.parametrize('share', [0.02, 0.1, 1.0])
@pytest.mark.parametrize('arch', NANO)
def test_auto_changes_no_number(arch, share, monkeypatch):
    monkeypatch.setattr(recomputing, 'SHARE', share)
    x = torch.randn(2, 3, 64, 96)
    models = built(arch, False), built(arch, 'auto')
    expected, ours = (gradients(model, x) for model in models)
    assert all(torch.equal(a, b) for a, b in zip(expected, ours, strict=True))
    ways = set(models[1].recomputing.ways.values())
    assert ways == {recompute} if share == 1 else ways & {remake, recompute}


def test_auto_changes_no_number_under_autocast():
    x = torch.randn(2, 3, 64, 64)
    expected, ours = (
        gradients(built('datpp-nano', with_cp), x, enabled=True, dtype=torch.bfloat16) for with_cp in (False, 'auto')
    )
    assert all(torch.equal(a, b) for a, b in zip(expected, ours, strict=True))


def test_auto_leaves_inference_and_frozen_stages_alone():
    model = built('dat-nano', 'auto', frozen_stages=2)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    model.eval()(torch.randn(1, 3, 64, 64))
    assert model.recomputing.ways is None
    model.train()(torch.randn(1, 3, 64, 64))
    assert {name.split('.')[0] for name in model.recomputing.ways} == {'2', '3'}


def test_a_copy_measures_for_itself():
    model = built('dat-nano', 'auto')
    other = copy.deepcopy(model)
    other(torch.randn(1, 3, 64, 64))
    assert other.recomputing.ways and model.recomputing.ways is None


def test_an_unknown_value_is_refused():
    with pytest.raises(ValueError, match="with_cp='half' is not False, True or 'auto'"):
        DAT('dat-nano', with_cp='half')


def test_the_most_memory_for_the_time_is_chosen():
    mb = 1_000_000
    costs = {
        'large and quick': Cost(80 * mb, 0.10, 20 * mb, 0.001),
        'small and slow': Cost(5 * mb, 0.50, 1 * mb, 0.001),
        'too long': Cost(900 * mb, 2.40, 0, 0.0),
    }
    ways, told = choose(costs)  # 5 % of three times 3 s are 0.45 s
    assert ways == {'large and quick': recompute, 'small and slow': remake, 'too long': keep}
    assert '101 of 1006 MB' in told and told.endswith('1.1% of the time')


@pytest.mark.parametrize('share', [0.001, 0.01, 0.05, 0.3])
def test_the_share_is_kept(share, monkeypatch):
    monkeypatch.setattr(recomputing, 'SHARE', share)
    numbers = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)).tolist()
    costs = {str(i): Cost(int(a * 1e8), b, int(c * 1e8), b * d * 0.1) for i, (a, b, c, d) in enumerate(numbers)}
    ways, _ = choose(costs)
    took = {keep: lambda cost: 0, remake: lambda cost: cost.cheap_seconds, recompute: lambda c: c.seconds}
    spent = sum(took[way](costs[name]) for name, way in ways.items())
    assert 0 < spent <= share * 3 * sum(cost.seconds for cost in costs.values())


def two_layers(x, weight):
    return F.linear(cheaply(F.gelu, F.linear(x, weight)), weight)


def test_recipes_instead_of_tensors():
    x, weight = torch.randn(4, 9, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    expected = torch.autograd.grad(two_layers(x, weight).sum(), (x, weight))
    with remaking() as made:
        out = two_layers(x, weight)
    assert list(made.spared.values()) == [4 * 9 * 8 * 4]  # what GELU made, but not what it was made from
    assert not made.made
    assert all(torch.equal(a, b) for a, b in zip(expected, torch.autograd.grad(out.sum(), (x, weight)), strict=True))


def test_recipes_of_recipes():
    """A copy of the output of a norm holds neither of the two."""
    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)

    def layers():
        normed = cheaply(lambda x: F.layer_norm(x, (8,)), x)
        return F.linear(cheaply(lambda x: x.flip(0), normed), weight)

    expected = torch.autograd.grad(layers().sum(), (x, weight))
    with remaking() as made:
        out = layers()
    assert len(made.spared) == 1 and x.data_ptr() in made.kept
    assert all(torch.equal(a, b) for a, b in zip(expected, torch.autograd.grad(out.sum(), (x, weight)), strict=True))


def test_second_derivatives_of_what_is_made_again():
    x, weight = torch.randn(4, 8, dtype=torch.double), torch.randn(8, 8, dtype=torch.double)

    def run(x, weight):
        with remaking():
            return two_layers(x, weight)

    assert torch.autograd.gradgradcheck(run, (x.requires_grad_(), weight.requires_grad_()))


def test_a_tensor_that_changed_is_kept_and_not_made_again():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)

    def layers():
        return F.linear(cheaply(lambda x: x.exp(), x.detach()).add_(1), weight)

    expected = torch.autograd.grad(layers().sum(), weight)
    with remaking() as made:
        out = layers()
    assert not made.spared
    assert torch.equal(*expected, *torch.autograd.grad(out.sum(), weight))


def test_a_source_that_changed_is_an_error():
    x, weight = torch.randn(4, 8), torch.randn(8, 8, requires_grad=True)
    with remaking():
        out = F.linear(cheaply(F.gelu, x), weight)
    x.add_(1)
    with pytest.raises(RuntimeError, match='was changed in place'):
        out.sum().backward()
