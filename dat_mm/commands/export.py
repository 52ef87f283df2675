# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/export.py does: it writes a trained model to a file that other runtimes run, and compares answers."""

import os
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS

from ..arch import ARCHS
from ..datasets.survey import leaf_datasets
from ..deploy.compare import differences
from ..deploy.graph import example, write_onnx
from ..deploy.networks import Network, wrap
from ..deploy.page.runtime import find_runtime
from ..deploy.page.watched import Watched, find_layer, leave_out
from ..deploy.pixels import Preprocessing
from ..deploy.precision import halve, quantise
from ..deploy.runtimes import SUFFIXES, open_exported, package, write_openvino
from ..engine.checkpoints import check_fit
from ..errors import UserError
from ..models import DAT
from ..models.pretrained import load_pretrained
from ..version import __version__
from ..weights import read_state_dict
from .infer import find_images, load_nothing_else, open_loadable, trained_meta
from .live import check_page, write_live
from .prepare import prepare

TOLERANCE = 1e-4  # of the largest value, in float32
IMAGENET = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
NAMES = {'labels': 'labels that differ', 'masks': 'mask pixels that differ'}


def preprocessing_of(model) -> Preprocessing:
    """What the data preprocessor of a toolbox's model does to a picture at test time."""
    given = model.data_preprocessor
    numbers = {}
    if getattr(given, '_enable_normalize', False):
        numbers = {name: tuple(getattr(given, name).flatten().tolist()) for name in ('mean', 'std')}
    # pictures are read as BGR: a model that turns the channels round wants RGB
    rgb = any(getattr(given, name, False) for name in ('to_rgb', 'channel_conversion', '_channel_conversion'))
    divisor = (getattr(given, 'test_cfg', None) or {}).get('size_divisor') or getattr(given, 'pad_size_divisor', 1)
    return Preprocessing(**numbers, bgr=not rgb, divisor=divisor or 1)


class Source:
    """A trained model: what it is made of, and pictures for it."""

    def __init__(self, config, checkpoint, cfg_options=(), backbone=False):
        if config in ARCHS:
            self.cfg, self.classes, self.palette, self.text = None, [], None, f'arch = {config!r}\n'
            self.preprocessing = IMAGENET
            self.model = load_backbone(DAT(config, out_indices=(0, 1, 2, 3)), checkpoint)
            return
        if not str(config).endswith('.py') and not Path(config).exists():
            raise UserError(f'{config} is no config file, and no arch: {", ".join(ARCHS)}')
        self.cfg = prepare(config, cfg_options, edit=load_nothing_else)
        model = self.cfg.model
        if self.cfg.get('data_preprocessor') and 'data_preprocessor' not in model:
            model.data_preprocessor = self.cfg.data_preprocessor
        self.model = MODELS.build(model)
        self.text = self.cfg.pretty_text
        self.preprocessing = preprocessing_of(self.model)
        with tempfile.TemporaryDirectory() as folder:
            file, content = open_loadable(checkpoint, folder)
            check_fit(self.model, content, checkpoint)
            self.model.load_state_dict(read_state_dict(file), strict=False)
        meta = trained_meta(self.cfg, content)
        self.classes, self.palette = list(meta.get('classes') or []), meta.get('palette')
        if backbone:
            self.model, self.classes = self.model.backbone, []

    def pictures(self, folder=None) -> Iterator[np.ndarray]:
        """Pictures (1, H, W, 3) in RGB after the config's test pipeline: of a folder, or of the test data by chance."""
        if self.cfg is None:
            raise UserError(f'{self.text.strip()} is no config: there is no pipeline that prepares pictures for it')
        leaf = next(leaf_datasets(self.cfg.test_dataloader.dataset))
        if folder is not None:
            pipeline = Compose([step for step in leaf.pipeline if 'Annotations' not in step['type']])
            for n, path in enumerate(find_images(folder)):
                yield _pixels(pipeline(dict(img_path=str(path), img_id=n)))
            return
        dataset = DATASETS.build(self.cfg.test_dataloader.dataset)
        for n in np.random.default_rng(0).permutation(len(dataset)):
            yield _pixels(dataset[int(n)])


def _pixels(packed) -> np.ndarray:
    """The picture (1, H, W, 3) in RGB of what a pipeline packs."""
    return np.ascontiguousarray(packed['inputs'].numpy()[::-1].transpose(1, 2, 0)[None])


def load_backbone(backbone, checkpoint):
    try:
        load_pretrained(backbone, checkpoint)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error
    return backbone


def export(
    config,
    checkpoint,
    out,
    *,
    shape=None,
    dynamic=False,
    precision='fp32',
    preprocess='inside',
    masks='image',
    backbone=False,
    check=None,
    calibration=None,
    pictures=64,
    page=None,
    layer=None,
    examples=None,
    runtime=None,
    cfg_options=(),
) -> dict[str, float]:
    """Writes a model to `out`. Returns the differences that `check` found; the options are those of tools/export.py."""
    out = Path(out)
    if out.suffix not in SUFFIXES:
        raise UserError(f'{out}: the name must end in .onnx, or in .xml for OpenVINO')
    if shape is not None and (dynamic or min(shape) < 1):
        raise UserError(f'--shape {shape[0]} {shape[1]}: two positive numbers, and not together with --dynamic')
    for name in ('onnx', 'onnxscript', 'onnxruntime', *(['openvino'] if out.suffix == '.xml' else [])):
        package(name)  # before anything slow
    if page is not None:
        check_page(page, preprocess)
        runtime = find_runtime(runtime)
    source = Source(config, checkpoint, cfg_options, backbone)
    inside = preprocess == 'inside'
    network = wrap(source.model, source.preprocessing, inside, pasted=masks == 'image')
    watched, opened = network, []
    if page is not None and (layer := find_layer(network, example(network, shape or (64, 64), 1), layer)):
        watched, opened = Watched(network, layer), [layer.module]
    metadata = dict(
        task=network.task,
        classes=source.classes,
        preprocessing=source.preprocessing._asdict(),
        inside=inside,
        precision=precision,
        config=source.text,
        version=__version__,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        plain = last = Path(folder, 'plain.onnx')
        write_onnx(watched, plain, shape=shape, metadata=metadata, opened=opened)
        if precision == 'int8':
            last = Path(folder, 'int8.onnx')
            images = islice(source.pictures(calibration), pictures)
            quantise(plain, last, (_as_input(image, network, source.preprocessing, shape) for image in images))
        elif precision == 'fp16' and out.suffix == '.onnx':
            last = Path(folder, 'fp16.onnx')
            halve(plain, last)
        if page is not None:
            write_live(source, config, network, layer, last, page, runtime, shape=shape, examples=examples)
        if watched is not network:
            whole, last = last, Path(folder, 'out.onnx')
            leave_out(whole, last, watched.watched)
        if out.suffix == '.xml':
            write_openvino(last, out, half=precision == 'fp16')
        else:
            os.replace(last, out)
    files = [out, *([out.with_suffix('.bin')] if out.suffix == '.xml' else [])]
    size = sum(file.stat().st_size for file in files)
    print(f'{out}: {network.task}, {size / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s')
    for line in _describe(network, shape):
        print(f'  {line}')
    return run_check(source, network, out, shape, precision, check) if check is not None else {}


def _as_input(image: np.ndarray, network: Network, preprocessing: Preprocessing, shape) -> np.ndarray:
    """A picture (1, H, W, 3) as the file takes it, cut or filled to its size where that is fixed."""
    if shape is not None:
        image = image[:, : shape[0], : shape[1]]
        image = np.pad(image, [(0, 0), *((0, n - m) for n, m in zip(shape, image.shape[1:3], strict=True)), (0, 0)])
    return image if network.pixels is not None else preprocessing.arrays(image)


def _describe(network: Network, shape) -> Iterator[str]:
    """Says what goes in and what comes out."""
    height, width = shape or ('height', 'width')
    if network.pixels is not None:
        yield f'in:  image (batch, {height}, {width}, 3), RGB bytes'
    else:
        yield f'in:  image (batch, 3, {height}, {width}), normalised'
    yield f'out: {", ".join(network.outputs)}'


def run_check(source: Source, network: Network, out: Path, shape, precision: str, given) -> dict[str, float]:
    """Prints the largest difference to PyTorch of each output, on given pictures or on made ones of several sizes."""
    exported = open_exported(out)
    if isinstance(given, (str, Path)):
        images = [_as_input(image, network, source.preprocessing, shape) for image in source.pictures(given)]
        where = f'{len(images)} pictures of {given}'
    else:
        sizes = [shape] if shape else [(256, 320), (203, 187), (32, 32)]
        images = [example(network, size, batch).numpy() for size in sizes for batch in (1, 2)]
        where = f'made pictures of {", ".join(f"{h}x{w}" for h, w in sizes)}, one and two at a time'
    worst: dict[str, float] = {}
    for image in images:
        with torch.no_grad():
            expected = {name: value.numpy() for name, value in network(torch.from_numpy(image)).items()}
        for name, value in differences(expected, exported.run(image)).items():
            worst[name] = max(worst.get(name, 0.0), value)
    print(f'largest differences to PyTorch, on {where}:')
    if float('inf') in worst.values():
        print('  there are other detections: another number of them, or other labels')
    else:
        for name, value in worst.items():
            print(f'  {NAMES.get(name, name):24} {value:.1e}')
    if precision == 'fp32' and max(worst.values()) > TOLERANCE:
        raise UserError(f'{out} is further from PyTorch than {TOLERANCE:.0e} of the largest value')
    return worst
