# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The report of runs: their best results beside the published ones, with nothing fetched from elsewhere."""

import json
import re

import pytest

pytest.importorskip('mmengine')

from dat_mm.commands.report import published, report
from dat_mm.errors import UserError

pytestmark = pytest.mark.one_stack

CONFIG = 'mask-rcnn_dat-tiny_fpn_8xb2-1x_coco'


def write_run(folder, config, metrics, losses=(3.0, 2.0, 1.5)):
    data = folder / '20260101_000000'
    (data / 'vis_data').mkdir(parents=True)
    lines = [dict(lr=0.1, loss=loss, step=10 * (i + 1)) for i, loss in enumerate(losses)]
    lines += [dict(metrics, step=1), {**{key: 0.9 * value for key, value in metrics.items()}, 'step': 2}]
    lines.append({'attention/backbone.stages.2.blocks.1.attn/offset': 3.5, 'step': 1})
    lines.append({'attention/backbone.stages.2.blocks.1.attn/offset': 4.5, 'step': 2})
    (data / 'vis_data/scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    (data / '20260101_000000.log').write_text(
        'x\n-----\nSystem environment:\n    sys.platform: minix\n    PyTorch: 9 <b>\n\n'
        'Runtime environment:\n    seed: 1\n-----\n'
    )
    (folder / f'{config}.py').write_text('model = "<tag>"\n')
    return folder


def test_results_stand_beside_the_published(tmp_path):
    one = write_run(tmp_path / 'one', CONFIG, {'coco/bbox_mAP': 0.431, 'coco/segm_mAP': 0.4})
    two = write_run(tmp_path / 'two', 'mine', {'coco/bbox_mAP': 0.25, 'thing': 0.123456})
    page = report([one, two], samples=0, out=tmp_path / 'out/report.html').read_text()
    known, source = published(CONFIG)
    assert known['box AP'] > 40 and source
    rows = dict(re.findall(r'<tr><td>([^<]*)</td>(.*?)</tr>', page))
    assert re.findall(r'<td>(?:<b>)?([^<]*)', rows['box AP']) == ['43.1', f'{known["box AP"]:.1f}', '25.0', '-']
    assert '<b>43.1</b>' in rows['box AP']
    assert re.findall(r'<td>(?:<b>)?([^<]*)', rows['mask AP']) == ['40.0', f'{known["mask AP"]:.1f}', '-', '-']
    assert re.findall(r'<td>(?:<b>)?([^<]*)', rows['thing']) == ['-', '-', '0.1235', '-']
    assert f'{CONFIG}: {source}' in page
    assert 'sys.platform: minix' in page and 'PyTorch: 9 &lt;b&gt;' in page and 'seed: 1' not in page
    assert 'model = &quot;&lt;tag&gt;&quot;' in page
    assert (
        'alt="curves of losses"' in page and 'alt="curves of metrics"' in page and 'alt="curves of attention"' in page
    )
    assert page.count('None: --samples 0') == 4
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith('data:') for source in sources)


def test_results_of_tests_count_too(tmp_path):
    one = write_run(tmp_path / 'one', CONFIG, {})
    for folder, values in (
        ('20260102_000000', {'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_l': -1}),
        ('test/20260102_1', [1]),
    ):
        (one / folder).mkdir(parents=True)
        (one / folder / f'{folder.split("/")[-1]}.json').write_text(json.dumps(values))
    page = report([one], samples=0).read_text()
    assert '<tr><td>box AP</td><td>50.0</td>' in page and 'bbox_mAP_l' not in page


def test_a_run_without_a_checkpoint_has_the_rest(tmp_path):
    one = write_run(tmp_path / 'one', CONFIG, {})
    page = report([one]).read_text()
    assert f'None: {one} has no checkpoint' in page
    assert (one / 'report.html').is_file()


def test_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match='no such work dir'):
        report([tmp_path / 'none'])
    with pytest.raises(UserError, match='holds no log of a run'):
        report([tmp_path])
