# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""make quickstart from end to end, on a few scenes."""

import importlib.util
import json
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[2]
FIGURES = {f'{prefix}{name}' for prefix in ('', 'scratch_') for name in ('box_AP50', 'mask_AP50', 'box_AP', 'mask_AP')}
PICTURES = ('predictions.png', 'losses.png', 'metrics.png', 'classifier/losses.png', 'classifier/metrics.png')


def main(*arguments):
    spec = importlib.util.spec_from_file_location('quickstart', ROOT / 'tools/quickstart.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(argument) for argument in arguments])


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/mine.txt').write_text('not to be touched')
    with pytest.raises(SystemExit) as caught:
        main('--work-dir', tmp_path / 'run', '--data-root', tmp_path / 'data')
    assert caught.value.code.startswith('error: ') and str(tmp_path / 'data') in caught.value.code
    assert '\n' not in caught.value.code


@pytest.mark.slow
def test_quickstart_and_again(tmp_path, capsys):
    run = tmp_path / 'run'
    arguments = ('--work-dir', run, '--data-root', tmp_path / 'data', '--scenes', 20, 6, '--epochs', 2, 2)
    main(*arguments)
    shown = capsys.readouterr().out
    summary = json.loads((run / 'summary.json').read_text())
    assert summary.keys() == {*FIGURES, 'crop_accuracy', 'seconds', 'seconds_by_step', 'device', 'versions'}
    assert all(0 <= summary[name] <= 1 for name in FIGURES)
    assert summary['seconds'] > 0 and {'torch', 'mmcv', 'mmdet', 'dat_mm'} <= summary['versions'].keys()
    for name in PICTURES:
        picture = cv2.imread(str(run / name))
        assert picture is not None and picture.std() > 10, f'{name} is blank'
    assert 'backbone starts from scratch' not in (run / 'pretrained/train.log').read_text()
    assert 'backbone starts from scratch' in (run / 'scratch/train.log').read_text()
    assert 'predictions.png' in shown and 'configs/coco/' in shown

    # a run that was stopped after its first epoch goes on there; what was finished is not done again
    step = run / 'scratch/step.json'
    state = json.loads(step.read_text())
    step.write_text(json.dumps(state | {'result': None}))
    (run / 'scratch/epoch_2.pth').unlink()
    (run / 'scratch/last_checkpoint').write_text(str(run / 'scratch/epoch_1.pth'))
    main(*arguments)
    shown = capsys.readouterr().out
    assert shown.count('done before') == 6
    assert (run / 'scratch/train.log').read_text().count('Epoch(val) [1]') == 1
    again = json.loads((run / 'summary.json').read_text())
    assert {name: again[name] for name in FIGURES} == {name: summary[name] for name in FIGURES}

    with pytest.raises(SystemExit, match='was made with other options'):
        main(*arguments[:-1], 3)
