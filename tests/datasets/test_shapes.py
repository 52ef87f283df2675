# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from dat_mm.datasets import CLASSES, ensure_shapes
from dat_mm.datasets.annotate import mask_to_polygons, mask_to_runs
from dat_mm.datasets.outlines import OUTLINES, polygon_area
from dat_mm.datasets.shapes import main, scene_of

coco_mask = pytest.importorskip('pycocotools.mask')

FIELDS = {'id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd', 'segmentation'}
SMALL = {'num_train': 40, 'num_val': 8, 'seed': 3, 'difficulty': 0.5}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return ensure_shapes(tmp_path_factory.mktemp('data') / 'shapes', workers=1, **SMALL)


@pytest.fixture(scope='module')
def scenes():
    return [scene_of(index, 'train', seed=0, size=160, difficulty=0.5) for index in range(150)]


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def read(root, split):
    return json.loads((root / 'annotations' / f'instances_{split}.json').read_text())


def test_same_seed_same_bytes_for_any_number_of_workers(root, tmp_path):
    again = ensure_shapes(tmp_path / 'shapes', workers=3, **SMALL)
    assert digest(root) == digest(again)


def test_same_bytes_in_another_process(root, tmp_path):
    options = [f'--{key.replace("_", "-")}={value}' for key, value in SMALL.items()]
    command = [sys.executable, '-m', 'dat_mm.datasets.shapes', '--root', str(tmp_path / 'other'), *options]
    subprocess.run(command, check=True, capture_output=True)
    assert digest(root) == digest(tmp_path / 'other')


def test_seed_split_and_index_each_change_the_scene():
    cases = [('train', 0, 0), ('train', 0, 1), ('train', 1, 0), ('val', 0, 0)]
    images = {scene_of(index, split, seed, 96, 0.5).image.tobytes() for split, seed, index in cases}
    assert len(images) == len(cases)


def test_more_scenes_begin_with_the_same_scenes(root, tmp_path):
    fewer = ensure_shapes(tmp_path / 'shapes', **{**SMALL, 'num_train': 3})
    files, more = digest(fewer / 'images'), digest(root / 'images')
    assert files.items() <= more.items()


def test_outlines_have_area_one():
    assert tuple(OUTLINES) == CLASSES
    for contours in OUTLINES.values():
        areas = [abs(polygon_area(contour)) for contour in contours]
        assert areas[0] - sum(areas[1:]) == pytest.approx(1)


@pytest.mark.parametrize('size', [160, 96])
def test_scenes_are_well_formed(scenes, size):
    if size != 160:
        scenes = [scene_of(index, 'val', 1, size, 0.5) for index in range(20)]
    for scene in scenes:
        assert scene.image.dtype == np.uint8
        assert scene.image.shape == (*scene.owner.shape, 3)
        assert max(scene.owner.shape) == size
        assert 1 <= len(scene.labels) == len(scene.crowd) == len(scene.shown)
        assert scene.owner.max() <= len(scene.labels)
        for index, crowd in enumerate(scene.crowd):
            assert scene.mask(index).sum() >= 50
            assert crowd or 0.4 <= scene.shown[index] <= 1


def test_sizes_occlusion_and_crowds_are_all_there(scenes):
    single = [(s, k) for s in scenes for k in range(len(s.labels)) if not s.crowd[k]]
    areas = np.array([scene.mask(k).sum() for scene, k in single])
    shown = np.array([scene.shown[k] for scene, k in single])
    assert areas.min() < 200
    assert areas.max() > 5000
    assert 0.2 < (shown < 0.9).mean() < 0.7
    assert 5 <= sum(sum(scene.crowd) for scene in scenes) <= 40
    assert any(len(mask_to_polygons(scene.mask(k))) > 1 for scene, k in single)


def test_classes_are_balanced(scenes):
    counts = np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=len(CLASSES))
    assert counts.min() > 0.6 * counts.mean()
    assert counts.max() < 1.4 * counts.mean()


def test_neither_colour_nor_place_nor_size_tells_the_class(scenes):
    """A classifier on colour, contrast, place and area, fitted on half, is at chance on the other half."""
    features, labels = [], []
    for scene in scenes:
        for k, label in enumerate(scene.labels):
            mask = scene.mask(k)
            y, x = np.nonzero(mask)
            pixels = scene.image[mask].astype(float)
            place = [x.mean() / mask.shape[1], y.mean() / mask.shape[0]]
            features.append([*pixels.mean(axis=0), *pixels.std(axis=0), *place, np.log(mask.sum())])
            labels.append(label)
    features = np.array(features)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    features = np.concatenate([features, features**2, np.ones((len(features), 1))], axis=1)
    targets, half = np.eye(len(CLASSES))[labels], len(labels) // 2
    weights = np.linalg.lstsq(features[:half], targets[:half], rcond=None)[0]
    accuracy = ((features[half:] @ weights).argmax(axis=1) == targets[half:].argmax(axis=1)).mean()
    assert accuracy < 1 / len(CLASSES) + 0.07


@pytest.mark.parametrize('kind', ['noise', 'blocks', 'full', 'pixel', 'ring', 'nested', 'diagonal'])
def test_polygons_and_runs_cover_a_mask_exactly(kind):
    rng = np.random.RandomState(0)
    for _ in range(20):
        mask = rng.rand(*rng.randint(3, 24, 2)) < rng.uniform(0.1, 0.9)
        if kind == 'blocks':
            mask = np.kron(mask, np.ones((3, 3), bool))
        elif kind == 'full':
            mask[:] = True
        elif kind == 'pixel':
            mask[:] = False
            mask[-1, -1] = True
        elif kind == 'ring':
            mask = np.pad(np.zeros((3, 4), bool), 2, constant_values=True)
        elif kind == 'nested':
            mask = np.pad(np.pad(np.pad(np.ones((2, 2), bool), 2), 2, constant_values=True), 1)
        elif kind == 'diagonal':
            mask = np.eye(9, dtype=bool)
        height, width = mask.shape
        polygons = mask_to_polygons(mask)
        runs = coco_mask.frPyObjects(mask_to_runs(mask), height, width)
        assert np.array_equal(coco_mask.decode(runs), mask)
        area = sum(abs(polygon_area(np.reshape(polygon, (-1, 2)))) for polygon in polygons)
        assert area == mask.sum()
        if mask.any():
            drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
            assert np.array_equal(drawn, mask)


def test_annotations_say_what_was_drawn(root):
    for split, count in (('train', SMALL['num_train']), ('val', SMALL['num_val'])):
        content = read(root, split)
        assert [category['name'] for category in content['categories']] == list(CLASSES)
        assert len(content['images']) == count
        assert len({record['id'] for record in content['annotations']}) == len(content['annotations'])
        for image in content['images']:
            scene = scene_of(image['id'] - 1, split, SMALL['seed'], 160, 0.5)
            assert scene.owner.shape == (image['height'], image['width'])
            records = [record for record in content['annotations'] if record['image_id'] == image['id']]
            assert [record['category_id'] - 1 for record in records] == scene.labels
            for k, record in enumerate(records):
                assert set(record) == FIELDS
                mask = scene.mask(k)
                assert record['bbox'] == list(cv2.boundingRect(mask.astype(np.uint8)))
                assert record['area'] == mask.sum()
                assert record['iscrowd'] == scene.crowd[k]
                assert isinstance(record['segmentation'], dict if record['iscrowd'] else list)
            masks = cv2.imread(str(root / 'masks' / split / f'{image["id"]:06d}.png'), cv2.IMREAD_UNCHANGED)
            assert masks.dtype == np.uint8
            truth = np.array([1] + [0 if c else v + 2 for v, c in zip(scene.labels, scene.crowd, strict=True)])
            assert np.array_equal(masks, truth[scene.owner])


def test_the_truth_scores_one(root, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(root / 'annotations' / 'instances_train.json'))
    assert any(record['iscrowd'] for record in truth.anns.values())
    found = [
        {
            'image_id': record['image_id'],
            'category_id': record['category_id'],
            'bbox': record['bbox'],
            'segmentation': truth.annToRLE(record),
            'score': 1.0,
        }
        for record in truth.anns.values()
        if not record['iscrowd']
    ]
    for kind in ('bbox', 'segm'):
        evaluation = COCOeval(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1)


def test_crops_are_in_folders_of_their_class(root):
    assert sorted(path.name for path in (root / 'imagenet' / 'train').iterdir()) == list(CLASSES)
    crops = list((root / 'imagenet' / 'val').rglob('*.jpg'))
    assert len(crops) > SMALL['num_val']
    for path in crops:
        assert cv2.imread(str(path)).shape == (96, 96, 3)
        number, k = (int(part) for part in path.stem.split('_'))
        scene = scene_of(number - 1, 'val', SMALL['seed'], 160, 0.5)
        assert CLASSES[scene.labels[k]] == path.parent.name
        assert scene.shown[k] >= 0.5
        assert not scene.crowd[k]


@pytest.mark.parametrize('difficulty', [-0.1, 1.5])
def test_difficulty_out_of_range_is_refused(tmp_path, difficulty):
    with pytest.raises(ValueError, match='difficulty='):
        ensure_shapes(tmp_path / 'shapes', difficulty=difficulty)
    assert not (tmp_path / 'shapes').exists()


def test_harder_scenes_have_more_noise_and_less_contrast():
    easy, hard = ([scene_of(k, 'val', 0, 96, d).image.astype(float) for k in range(12)] for d in (0, 1))
    rough = [np.mean([np.abs(np.diff(image, axis=1)).mean() for image in images]) for images in (easy, hard)]
    assert rough[1] > 1.5 * rough[0]


def test_command_line(tmp_path, capsys):
    options = ['--root', str(tmp_path / 'shapes'), '--num-train', '2', '--num-val', '1', '--size', '96']
    main(options)
    assert 'made in' in capsys.readouterr().out
    main(options)
    assert 'already there' in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([*options, '--seed', '9'])
    assert stop.value.code == 1
    assert 'seed=0, not seed=9' in capsys.readouterr().err


def test_importing_is_light():
    heavy = {'cv2', 'numpy', 'torch', 'mmengine', 'mmdet'}
    code = f'import sys, dat_mm.datasets; print({heavy} & set(sys.modules))'
    result = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == 'set()'
