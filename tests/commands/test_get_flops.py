# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import importlib.util
from pathlib import Path

import pytest
from mmengine.config import Config

from dat_mm.commands import get_flops

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location('tool_get_flops', ROOT / 'tools/get_flops.py')
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def config(name):
    return ROOT / f'configs/{name}.py'


def test_tool(capsys):
    tool.main(['dat-tiny'])
    out = capsys.readouterr().out
    assert 'dat-tiny, one image of 224x224' in out and '28.319 M' in out and '4.563 G' in out


def test_tool_names_unknown_archs():
    with pytest.raises(SystemExit, match="error: arch='dat-tinny' is unknown: did you mean 'dat-tiny'"):
        tool.main(['dat-tinny'])


def test_a_config_counts_as_its_arch(capsys):
    """The classifier of a config is the arch with the head of ImageNet."""
    parts = get_flops.count_arch('datpp-tiny', (224, 224))
    assert get_flops.count_config(config('imagenet/datpp-tiny_32xb128_in1k'), (224, 224)) == parts


def test_a_config_without_dat_is_refused():
    path = config('imagenet/convnext-tiny_32xb128_in1k')
    with pytest.raises(SystemExit, match=r'error: .*convnext-tiny.*: its model has no DAT backbone'):
        tool.main([str(path)])


@pytest.mark.parametrize(('head', 'stages'), [('mask-rcnn', 1), ('cascade-mask-rcnn', 3)])
def test_heads_on_regions_by_hand(head, stages):
    """Shapes: each stage has a box head for 1000 regions and a mask head for 100, whatever the proposals are."""
    model = get_flops.build_config(Config.fromfile(config(f'shapes/{head}_datpp-nano_fpn_1xb4_shapes')))
    wrapped, counts = get_flops.OneImage(model), {}
    roi_head = model.roi_head
    for heads in (roi_head.bbox_head, roi_head.mask_head):
        for module in heads if stages > 1 else [heads]:
            module.register_forward_pre_hook(lambda module, args: counts.update({id(module): tuple(args[0].shape)}))
    wrapped.eval()(get_flops.torch.empty(1, 3, 128, 128, device='meta'))
    shapes = sorted(counts.values())
    assert len(shapes) == 2 * stages
    assert {shape[0] for shape in shapes[:stages]} == {100} and {shape[0] for shape in shapes[stages:]} == {1000}
