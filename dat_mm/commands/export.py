# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/export.py does: it writes a trained model to a file that other runtimes run, and compares answers."""

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ..arch import ARCHS
from ..deploy.compare import differences
from ..deploy.graph import example, write_onnx
from ..deploy.networks import Network, wrap
from ..deploy.page.runtime import find_runtime
from ..deploy.page.watched import Watched, find_layer, leave_out
from ..deploy.pixels import Preprocessing
from ..deploy.precision import halve, quantise
from ..deploy.runtimes import SUFFIXES, open_exported, package, write_openvino
from ..errors import UserError
from ..models import DAT
from ..models.pretrained import load_pretrained
from ..version import __version__
from .live import check_page, write_live

TOLERANCE = 1e-4  # of the largest value, in float32
IMAGENET = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
NAMES = {'labels': 'labels that differ', 'masks': 'mask pixels that differ'}


class Bare:
    """A trained backbone by itself, by the name of its arch. It has no data, and takes pictures as ImageNet's are."""

    classes, palette, pipeline, preprocessing = (), None, None, IMAGENET

    def __init__(self, arch: str, checkpoint):
        self.text = f'arch = {arch!r}\n'
        self.model = DAT(arch, out_indices=(0, 1, 2, 3))
        try:
            load_pretrained(self.model, checkpoint)
        except (ValueError, RuntimeError) as error:
            raise UserError(str(error)) from error

    def pictures(self, folder=None):
        raise UserError(f'{self.text.strip()} is no config: there is no pipeline that prepares pictures for it')


def open_source(config, checkpoint, cfg_options=(), backbone=False):
    """The model to export: what a config describes, or a backbone by itself, which needs none of the toolboxes."""
    if config in ARCHS:
        return Bare(config, checkpoint)
    if not str(config).endswith('.py') and not Path(config).exists():
        raise UserError(f'{config} is no config file, and no arch: {", ".join(ARCHS)}')
    from .trained import Trained

    return Trained(config, checkpoint, cfg_options, backbone)


def export(
    config,
    checkpoint,
    out,
    *,
    shape=None,
    dynamic=False,
    batch=None,
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
    if batch is not None and (batch < 1 or shape is None):
        raise UserError(f'--batch {batch}: a positive number, and together with --shape')
    if page is not None and batch not in (None, 1):
        raise UserError(f'--batch {batch}: a page looks at one picture at a time')
    for name in ('onnx', 'onnxscript', 'onnxruntime', *(['openvino'] if out.suffix == '.xml' else [])):
        package(name)  # before anything slow
    if page is not None:
        check_page(page, preprocess)
        runtime = find_runtime(runtime)
    source = open_source(config, checkpoint, cfg_options, backbone)
    inside = preprocess == 'inside'
    network = wrap(source.model, source.preprocessing, inside, pasted=masks == 'image')
    watched, opened = network, []
    if page is not None and (layer := find_layer(network, example(network, shape or (64, 64), 1), layer)):
        watched, opened = Watched(network, layer), [layer.module]
    as_input = partial(_as_input, network=network, preprocessing=source.preprocessing, shape=shape, batch=batch)
    metadata = dict(
        task=network.task,
        classes=list(source.classes),
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
        write_onnx(watched, plain, shape=shape, batch=batch, metadata=metadata, opened=opened)
        if precision == 'int8':
            last = Path(folder, 'int8.onnx')
            images = islice(source.pictures(calibration), pictures)
            quantise(plain, last, (as_input(image) for image in images))
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
    for line in _describe(network, shape, batch):
        print(f'  {line}')
    return run_check(source, network, out, shape, batch, precision, check, as_input) if check is not None else {}


def _as_input(image: np.ndarray, network: Network, preprocessing: Preprocessing, shape, batch) -> np.ndarray:
    """A picture (1, H, W, 3) as the file takes it, cut or filled to its size and repeated where these are fixed."""
    if shape is not None:
        image = image[:, : shape[0], : shape[1]]
        image = np.pad(image, [(0, 0), *((0, n - m) for n, m in zip(shape, image.shape[1:3], strict=True)), (0, 0)])
    image = image.repeat(batch or 1, axis=0)
    return image if network.pixels is not None else preprocessing.arrays(image)


def _describe(network: Network, shape, batch) -> Iterator[str]:
    """Says what goes in and what comes out."""
    batch = batch or 'batch'
    height, width = shape or ('height', 'width')
    if network.pixels is not None:
        yield f'in:  image ({batch}, {height}, {width}, 3), RGB bytes'
    else:
        yield f'in:  image ({batch}, 3, {height}, {width}), normalised'
    yield f'out: {", ".join(network.outputs)}'


def run_check(source, network: Network, out: Path, shape, batch, precision: str, given, as_input) -> dict[str, float]:
    """Prints the largest difference to PyTorch of each output, on given pictures or on made ones of several sizes."""
    exported = open_exported(out)
    if isinstance(given, (str, Path)):
        images = [as_input(image) for image in source.pictures(given)]
        where = f'{len(images)} pictures of {given}'
    else:
        sizes = [shape] if shape else [(256, 320), (203, 187), (32, 32)]
        batches = [batch] if batch else [1, 2]
        images = [example(network, size, n).numpy() for size in sizes for n in batches]
        where = (
            f'made pictures of {", ".join(f"{h}x{w}" for h, w in sizes)}, {" and ".join(map(str, batches))} at a time'
        )
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
