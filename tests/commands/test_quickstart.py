# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""tools/quickstart.py: its steps, its screen, its pictures, and the whole from end to end on a few scenes."""

import importlib.util
import io
import json
import pickle
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dat_mm.datasets import CLASSES, ensure_shapes
from dat_mm.errors import UserError

pytest.importorskip('mmengine')

from dat_mm.commands.quickstart import job, pictures
from dat_mm.commands.quickstart.quickstart import ending
from dat_mm.commands.screen import Progress, Screen
from dat_mm.commands.steps import Step, run_all

ROOT = Path(__file__).parents[2]
FIGURES = {f'{prefix}{name}' for prefix in ('', 'scratch_') for name in ('box_AP50', 'mask_AP50', 'box_AP', 'mask_AP')}
PICTURES = ('crops.png', 'predictions.png', 'losses.png', 'classifier/losses.png')
LINE = '06/01 12:00:00 - mmengine - INFO - Epoch(train)  [{}][{}/10]  base_lr: 1.0e-03  eta: {}  time: 0.3  loss: {}'


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


def test_a_finished_step_is_found_again_and_other_options_are_refused(tmp_path):
    step = Step(tmp_path / 'step', epochs=3)
    step.save()
    assert not Step(tmp_path / 'step', epochs=3).done
    step.save('the result')
    assert Step(tmp_path / 'step', epochs=3).result == 'the result'
    with pytest.raises(UserError, match='was made with other options'):
        Step(tmp_path / 'step', epochs=4)


def test_commands_run_side_by_side_and_their_lines_are_told_and_kept(tmp_path):
    code = 'import os; print("hello"); print(os.environ["WHO"])'
    commands = {name: ([sys.executable, '-c', code], dict(WHO=name), tmp_path / f'logs/{name}.txt') for name in 'ab'}
    lines = {'a': [], 'b': []}
    run_all(commands, lambda name, line: lines[name].append(line))
    assert lines == {'a': ['hello\n', 'a\n'], 'b': ['hello\n', 'b\n']}
    assert (tmp_path / 'logs/b.txt').read_text() == 'hello\nb\n'


def test_one_that_fails_stops_the_others_and_its_last_line_is_told(tmp_path):
    fails = [sys.executable, '-c', 'import sys; print("the reason"); sys.exit(3)']
    waits = [sys.executable, '-c', 'import sys; sys.stdin.close(); import time; time.sleep(600)']
    commands = dict(fails=(fails, {}, tmp_path / 'fails.txt'), waits=(waits, {}, tmp_path / 'waits.txt'))
    with pytest.raises(UserError, match=r'^the reason \(the log is .*fails\.txt; run it again to go on\)$'):
        run_all(commands, lambda name, line: None)


def test_a_job_tells_events_among_other_lines(capsys):
    job._tell('tested', {'accuracy': 0.5})
    line = capsys.readouterr().out
    assert job.heard(line) == ['tested', {'accuracy': 0.5}]
    assert job.heard(LINE.format(1, 5, '0:00:10', 1.5)) is None


def test_trainings_side_by_side_are_told_in_one_line_a_third():
    out = io.StringIO()
    progress = Progress(Screen(out), dict(pretrained=3, scratch=3))
    for epoch in (1, 2, 3):
        for name, loss in (('pretrained', 1.0), ('scratch', 2.0)):
            for at in (5, 10):
                assert progress.read(name, LINE.format(epoch, at, f'0:0{3 - epoch}:07', loss / epoch))
    assert not progress.read('scratch', 'Loads checkpoint by local backend')
    lines = [line[7:] for line in out.getvalue().splitlines()]
    assert lines == [
        '33 % trained, 02:07 left; loss: pretrained 1.00, scratch 2.00',
        '67 % trained, 01:07 left; loss: pretrained 0.50, scratch 1.00',
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_last_line_that_is_written_over():
    out = Terminal()
    screen = Screen(out)
    screen.now('one half')
    screen.say('done')
    assert 'one half' in out.getvalue()
    assert out.getvalue().rpartition('\033[K')[2].endswith('done\n')


def test_the_ending_is_short(tmp_path):
    summary = dict.fromkeys(FIGURES, 0.5) | dict(seconds=400.0, device='cpu, 2 cores')
    lines = ending(summary, Path('work_dirs/quickstart'), Path('data/shapes'), ROOT).splitlines()
    assert len(lines) <= 15
    names = ('predictions.png', 'tools/infer.py', 'tools/export.py', 'configs/coco/')
    assert all(name in '\n'.join(lines) for name in names)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return ensure_shapes(tmp_path_factory.mktemp('data') / 'shapes', num_train=1, num_val=6, workers=1)


def test_predictions_are_drawn_beside_the_truth(shapes, tmp_path):
    torch, coco_mask = pytest.importorskip('torch'), pytest.importorskip('pycocotools.mask')
    content = json.loads((shapes / 'annotations/instances_val.json').read_text())
    found = []
    for image in content['images']:
        mask = np.zeros((image['height'], image['width']), np.uint8, order='F')
        mask[20:60, 30:80] = 1
        objects = dict(bboxes=torch.tensor([[30, 20, 80, 60.0]]), labels=torch.tensor([6]), scores=torch.tensor([0.9]))
        found.append(dict(img_id=image['id'], pred_instances=dict(objects, masks=[coco_mask.encode(mask)])))
    dump = tmp_path / 'predictions.pkl'
    pictures_of = {}
    for score in (0.9, 0.1):  # the second is below the least score that is drawn
        for sample in found:
            sample['pred_instances']['scores'][:] = score
        dump.write_bytes(pickle.dumps(found))
        pictures.draw_predictions(shapes, {'model': dump}, tmp_path / 'picture.png', width=800)
        pictures_of[score] = cv2.imread(str(tmp_path / 'picture.png')).astype(float)
    height = pictures_of[0.9].shape[0]
    assert pictures_of[0.9].shape[1] == 800
    truth, drawn = (
        np.abs(pictures_of[0.9] - pictures_of[0.1])[rows].mean() for rows in np.split(np.arange(height), [height // 2])
    )
    assert drawn > 5 and drawn > 2 * truth  # the palette differs a little too


def test_names_of_crops_are_green_where_they_are_right(shapes, tmp_path):
    crops = sorted((shapes / 'imagenet/val').glob('*/*.jpg'))
    greenness = {}
    for right in (True, False):
        samples = []
        for path in crops:
            label = CLASSES.index(path.parent.name)
            samples.append(dict(img_path=str(path), gt_label=label, pred_label=label if right else (label + 1) % 8))
        (tmp_path / 'crops.pkl').write_bytes(pickle.dumps(samples))
        pictures.draw_crops(tmp_path / 'crops.pkl', tmp_path / 'crops.png')
        picture = cv2.imread(str(tmp_path / 'crops.png')).astype(float)
        names = picture[88:104]  # below the first row
        greenness[right] = (names[..., 1] - names[..., 2]).mean()
    assert greenness[True] > 0 > greenness[False]


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
    assert 'backbone starts from scratch' not in (run / 'pretrained/log.txt').read_text()
    assert 'backbone starts from scratch' in (run / 'scratch/log.txt').read_text()
    assert 'crops.png' in shown and 'predictions.png' in shown and 'configs/coco/' in shown
    assert len(shown.splitlines()) <= 24, shown

    # a run that was stopped after its first epoch goes on there; what was finished is not done again
    for step in (run / 'scratch/step.json', run / 'scratch/test/step.json'):
        step.write_text(json.dumps(json.loads(step.read_text()) | {'result': None}))
    (run / 'scratch/epoch_2.pth').unlink()
    (run / 'scratch/last_checkpoint').write_text(str(run / 'scratch/epoch_1.pth'))
    main(*arguments)
    shown = capsys.readouterr().out
    assert shown.count('done before') == 3
    assert 'resumed epoch: 1' in (run / 'scratch/log.txt').read_text()
    again = json.loads((run / 'summary.json').read_text())
    assert {name: again[name] for name in FIGURES} == {name: summary[name] for name in FIGURES}

    with pytest.raises(SystemExit, match='was made with other options'):
        main(*arguments[:-1], 3)
