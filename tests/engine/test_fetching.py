# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A bad sample ends a run with one line that names its file, or is skipped where that is allowed."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.registry import DefaultScope
from runs import log_text, losses, run

from dat_mm.commands.prepare import import_toolbox
from dat_mm.engine import fetching
from dat_mm.engine.fetching import BadSample, build_dataset, fetch_by_draw, fetch_named
from dat_mm.errors import UserError

SCOPES = ('mmpretrain', 'mmdet', 'mmseg')
# The file of the sample that is bad, for each toolbox.
BAD = {'mmpretrain': 'folders/dark/2.png', 'mmdet': 'images/2.png', 'mmseg': 'masks/2.png'}
DISK_ERROR = OSError('disk on fire\nsecond line')


class Numbers(Dataset):
    """Items that are their index and a random number; those of `bad` raise."""

    def __init__(self, bad=(), error=DISK_ERROR, length=8):
        self.bad, self.error, self.length = bad, error, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.bad:
            raise self.error
        return index, float(torch.rand(()))


def fetched(dataset, allowed=0, workers=0, epochs=1):
    """What is fetched of all samples in order, two in a batch."""
    fetch_by_draw(dataset, allowed)
    draws = [[(index, (0, 0, index)) for index in (first, first + 1)] for first in range(0, len(dataset), 2)]
    loader = DataLoader(dataset, batch_sampler=draws, num_workers=workers, collate_fn=list)
    return [[item for batch in batches_of(loader) for item in batch] for _ in range(epochs)]


def batches_of(loader):
    """The batches of a loader. Its workers are ended at once: after an error torch waits for each five seconds."""
    batches = iter(loader)
    try:
        yield from batches
    finally:
        if loader.num_workers:
            batches._shutdown_workers()


@pytest.mark.parametrize('workers', [0, 2])
def test_the_first_bad_sample_ends_the_run_with_one_line(workers):
    with pytest.raises(BadSample) as caught:
        fetched(Numbers(bad=[5]), workers=workers)
    assert str(caught.value) == 'sample 5 of Numbers: OSError: disk on fire'
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('error', [TypeError('no int'), NameError('x'), KeyError('img'), NotImplementedError('later')])
def test_a_mistake_of_a_program_is_no_bad_sample(error, workers):
    with pytest.raises(type(error)) as caught:
        fetched(Numbers(bad=[5], error=error), allowed=3, workers=workers)
    assert not isinstance(caught.value, BadSample)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_sample_is_replaced_by_the_next_good_one(workers, monkeypatch):
    (expected,) = fetched(Numbers())
    first, again = fetched(Numbers(bad=[3, 4, 7]), allowed=3, workers=workers, epochs=2)
    assert first == again  # met again, they count no more
    assert [index for index, _ in first] == [0, 1, 2, 5, 5, 5, 6, 0]
    assert [number for _, number in first] == [
        number for _, number in expected
    ]  # the random numbers are those of the bad


@pytest.mark.parametrize('workers', [0, 2])
def test_one_bad_sample_too_many_ends_the_run(workers):
    with pytest.raises(BadSample) as caught:
        fetched(Numbers(bad=[1, 3, 6]), allowed=2, workers=workers)
    assert str(caught.value).endswith('disk on fire (the bad sample after the 2 that skip_bad_samples=2 allows)')
    assert '\n' not in str(caught.value)


def test_each_is_told_once(monkeypatch):
    told = []
    monkeypatch.setattr(fetching, 'print_log', lambda message, *_: told.append(message))
    fetched(Numbers(bad=[3, 4]), allowed=20, epochs=2)
    assert told == [
        f'bad sample {n} of at most 20: sample {index} of Numbers: OSError: disk on fire'
        for n, index in ((1, 3), (2, 4))
    ]


def test_all_bad_is_an_error():
    with pytest.raises(BadSample, match='none of the 4 samples of Numbers is good'):
        fetched(Numbers(bad=range(4), length=4), allowed=9)


@pytest.mark.parametrize('allowed', [-1, 1.5, True, '3'])
def test_a_count_is_a_whole_number(allowed):
    with pytest.raises(UserError, match='skip_bad_samples='):
        fetch_by_draw(Numbers(), allowed)


def test_no_sample_is_skipped_in_validation():
    dataset = Numbers(bad=[1])
    fetch_named(dataset)
    loader = DataLoader(dataset, batch_size=2, collate_fn=list, num_workers=1)
    with pytest.raises(BadSample, match=r'^sample 1 of Numbers: OSError: disk on fire$'):
        list(batches_of(loader))


def spoil(root, scope):
    """Cuts off an image, or makes a map smaller than its image."""
    path = root / BAD[scope]
    if scope == 'mmseg':
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:60])
    else:
        path.write_bytes(path.read_bytes()[:3000])
    return path


@pytest.fixture
def spoiled(tiny_data, tiny_config, tmp_path):
    """Makes (the config of a toolbox, its data in a folder of its own, the file of its bad sample)."""

    def make(scope, bad=True):
        root = tmp_path / f'data_{scope}'
        shutil.copytree(tiny_data, root)
        config = tiny_config(scope)
        config.write_text(config.read_text().replace(str(tiny_data), str(root)))
        return config, root, spoil(root, scope) if bad else root / BAD[scope]

    return make


def training_data(config, **options):
    """Builds the training data of a config as training does."""
    cfg = Config.fromfile(config)
    import_toolbox(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return build_dataset(cfg.train_dataloader.dataset, **options)


def places(dataset):
    return [[(place, (0, 0, place)) for place in range(len(dataset))]]


def read_all(dataset, allowed=0):
    fetch_by_draw(dataset, allowed)
    return dataset.__getitems__(places(dataset)[0])


@pytest.mark.parametrize('scope', SCOPES)
def test_the_file_is_named(scope, spoiled):
    config, root, path = spoiled(scope)
    with pytest.raises(BadSample) as caught:
        read_all(training_data(config))
    what = 'is 72 x 60 pixels, and its image 72 x 96' if scope == 'mmseg' else 'is corrupt or cut off'
    assert str(caught.value).startswith(f'{path}: {what}')
    assert len(read_all(training_data(config), allowed=1)) == 6


@pytest.mark.parametrize('scope', SCOPES)
def test_watching_changes_no_sample(scope, spoiled):
    config, *_ = spoiled(scope, bad=False)
    watched, plain = training_data(config), training_data(config)
    samples = read_all(watched)
    for place, sample in enumerate(samples):
        with fetching.seeded(0, 0, place):
            assert torch.equal(sample['inputs'], plain[place]['inputs'])


@pytest.mark.parametrize('scope', SCOPES)
def test_a_missing_file_is_named(scope, spoiled):
    config, root, path = spoiled(scope)
    path.unlink()
    if scope == 'mmpretrain':  # which lists the files first
        dataset = None
        shutil.copy(path.with_name('0.png'), path)
        dataset = training_data(config)
        path.unlink()
    else:
        dataset = training_data(config)
    with pytest.raises(BadSample) as caught:
        read_all(dataset)
    assert str(caught.value).startswith(f'{path}: no such file')


def test_a_box_that_is_not_finite(spoiled):
    config, root, _ = spoiled('mmdet', bad=False)
    content = json.loads((root / 'boxes.json').read_text())
    content['annotations'][3]['bbox'] = [1.0, 2.0, float('inf'), 5.0]
    (root / 'boxes.json').write_text(json.dumps(content))
    with pytest.raises(BadSample) as caught:
        read_all(training_data(config))
    assert str(caught.value).startswith(f'{root}/boxes.json: the objects of {root}/images/3.png: a box is')
    assert str(caught.value).endswith('not of finite numbers')


LEFT_OUT = {
    'outside': dict(bbox=[500, 500, 10, 10]),
    'without area': dict(bbox=[5, 5, 0, 10]),
    'of no area': dict(area=0),
    'not a number': dict(bbox=[float('nan'), 5, 10, 10]),
    'of no class': dict(category_id=9),
}


@pytest.mark.parametrize('changes', [*LEFT_OUT.values(), {}, dict(ignore=1)], ids=[*LEFT_OUT, 'good', 'to be ignored'])
def test_objects_that_mmdet_leaves_out_are_counted(changes, spoiled, monkeypatch):
    told = []
    monkeypatch.setattr(fetching, 'print_log', lambda message, *_: told.append(message))
    config, root, _ = spoiled('mmdet', bad=False)
    content = json.loads((root / 'boxes.json').read_text())
    content['annotations'][3].update(changes)
    (root / 'boxes.json').write_text(json.dumps(content))
    training_data(config)
    line = f'{root}/boxes.json: 1 of its 6 objects are left out by mmdet, '
    assert [message.startswith(line) for message in told] == [True] * (changes in LEFT_OUT.values())
    training_data(config, skip_bad_objects=1)
    if changes in LEFT_OUT.values():
        with pytest.raises(UserError) as caught:
            training_data(config, skip_bad_objects=0)
        assert str(caught.value).startswith(line) and str(caught.value).endswith('(skip_bad_objects=0 allows no more)')


@pytest.mark.parametrize('allowed', [-1, True, 'few'])
def test_a_limit_of_bad_objects_that_is_none(allowed, spoiled):
    config, *_ = spoiled('mmdet', bad=False)
    with pytest.raises(UserError, match=f'skip_bad_objects={allowed!r} is not a whole number of objects, 0 or more'):
        training_data(config, skip_bad_objects=allowed)


def test_boxes_without_area_after_the_pipeline():
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    def sample(*boxes):
        instances = InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4))
        return dict(inputs=None, data_samples=DetDataSample(gt_instances=instances))

    assert fetching.sample_fault(sample()) is None
    assert fetching.sample_fault(sample([1.0, 2.0, 3.0, 4.0])) is None
    fault = fetching.sample_fault(sample([1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 3.0, 9.0]))
    assert fault.startswith('a box is [3.0, 4.0, 3.0, 9.0]') and fault.endswith('of width or height 0 or less')


def test_an_object_that_a_crop_left_out_has_a_box_without_area():
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    masks = np.zeros((2, 8, 8), np.uint8)
    masks[0, 2:4, 1:3] = 1
    instances = InstanceData(
        bboxes=torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]), masks=BitmapMasks(masks, 8, 8)
    )
    sample = dict(inputs=None, data_samples=DetDataSample(gt_instances=instances))
    assert fetching.sample_fault(sample) is None
    instances.bboxes[0, 2] = 1.0
    assert fetching.sample_fault(sample).startswith('a box is [1.0, 2.0, 1.0, 4.0]')


@pytest.mark.parametrize(
    ('spoil', 'what'),
    [
        (lambda content: content['annotations'][2].pop('bbox'), 'annotation 3 (image 2): bbox is None'),
        (lambda content: content.pop('categories'), "'categories' is missing, not a list"),
        (lambda content: content['images'][1].update(width='wide'), "image 1: width and height are 'wide' and 72"),
    ],
)
def test_a_data_set_that_cannot_be_built_names_the_annotation(spoil, what, spoiled):
    config, root, _ = spoiled('mmdet', bad=False)
    content = json.loads((root / 'boxes.json').read_text())
    spoil(content)
    (root / 'boxes.json').write_text(json.dumps(content))
    with pytest.raises(BadSample) as caught:
        training_data(config)
    assert str(caught.value).startswith(f'{root}/boxes.json: {what}')


@pytest.mark.parametrize(
    ('mistake', 'error'),
    [
        ("train_dataloader['dataset']['no_such_argument'] = 1\n", TypeError),
        ("train_dataloader['dataset']['pipeline'][1]['type'] = 'NoSuchTransform'\n", KeyError),
    ],
)
def test_a_mistake_in_a_config_is_no_bad_data(mistake, error, spoiled):
    """Also where an annotation has a fault that mmdet does not mind."""
    config, root, _ = spoiled('mmdet')
    content = json.loads((root / 'boxes.json').read_text())
    content['annotations'][0]['iscrowd'] = 2
    (root / 'boxes.json').write_text(json.dumps(content))
    assert len(training_data(config)) == 6
    with config.open('a') as text:
        text.write(mistake)
    with pytest.raises(error, match=r'no_such_argument|NoSuchTransform'):
        training_data(config)


def test_a_filter_that_leaves_nothing_is_told(spoiled):
    config, root, _ = spoiled('mmdet', bad=False)
    with config.open('a') as text:
        text.write("train_dataloader['dataset']['filter_cfg'] = dict(min_size=500)\n")
    with pytest.raises(BadSample) as caught:
        training_data(config)
    assert str(caught.value).startswith(
        f"{root}/boxes.json: none of its 6 samples is left (filter_cfg={{'min_size': 500}})"
    )


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('scope', SCOPES)
def test_a_run_ends_with_one_line(scope, workers, spoiled, tmp_path):
    config, _, path = spoiled(scope)
    options = ('--no-validate', '--cfg-options', f'train_dataloader.num_workers={workers}')
    done = run(config, tmp_path / 'work', *options)
    assert done.returncode == 1
    assert done.stderr.count('error: ') == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f'error: {path}: is ')
    assert 'Traceback' not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('scope', SCOPES)
def test_a_run_skips_and_resumes_with_the_same_samples(scope, spoiled, tmp_path):
    config, _, path = spoiled(scope)
    settings = ('train_dataloader.num_workers=2', 'skip_bad_samples=3')
    options = ('--no-validate', '--seed', 3, '--cfg-options', *settings)
    whole = run(config, tmp_path / 'whole', *options)
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert log_text(tmp_path / 'whole').count(f'WARNING - bad sample 1 of at most 3: {path}: is ') == 1
    first = min((tmp_path / 'whole').glob('*_*.pth'), key=lambda file: int(file.stem.split('_')[1]))
    resumed = run(config, tmp_path / 'resumed', '--resume', first, *options)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    expected = losses(tmp_path / 'whole')
    found = losses(tmp_path / 'resumed')
    assert found and found == {step: expected[step] for step in found}


@pytest.mark.slow
def test_a_bad_sample_ends_a_validation(spoiled, tmp_path):
    """Although some may be skipped in training."""
    config, root, path = spoiled('mmdet')
    done = run(config, tmp_path / 'work', '--cfg-options', 'skip_bad_samples=3', 'val_dataloader.num_workers=1')
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f'error: {path}: is corrupt or cut off')


@pytest.mark.slow
def test_each_process_that_meets_a_bad_sample_names_it(spoiled, tmp_path):
    config, _, path = spoiled('mmpretrain')
    each = 'train_dataloader.batch_size=3'  # of six samples, so that one process meets it
    done = run(config, tmp_path / 'work', '--no-validate', '--cfg-options', each, processes=2)
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count(f'error: {path}: is corrupt or cut off') == 1
