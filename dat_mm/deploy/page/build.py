# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Puts the live page together: model, runtime, pictures, scripts and looks in one file that needs no network."""

import base64
import colorsys
import gzip
import json
import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ... import visualize
from ...visualize.inline import source_of
from ...visualize.layer import Layer
from ...visualize.view import COLOURS
from ...weights import written_whole
from .runtime import Runtime

LARGEST = 40_000_000  # bytes of a page; a larger model lies beside it
PART = 20_000_000  # characters of a file of such a model
SMALL = 320 * 320  # pixels up to which an example is kept without loss


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding='utf-8')


def _shared(name: str) -> str:
    return files(visualize).joinpath('page', name).read_text(encoding='utf-8')


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _example(image: np.ndarray) -> str:
    """A picture (H, W, 3) as the page has it: without loss where it is small."""
    from PIL import Image

    picture = Image.fromarray(image)
    if picture.width * picture.height <= SMALL:
        return source_of(lambda file: picture.save(file, 'PNG'), 'png')
    return source_of(lambda file: picture.save(file, 'JPEG', quality=92), 'jpeg')


def palette_of(count: int, given=None) -> list[str]:
    """The colours of so many classes, as #rrggbb: those of the data, or hues that are far from each other."""
    if isinstance(given, (list, tuple)) and len(given) >= count > 0:
        return [f'#{r:02x}{g:02x}{b:02x}' for r, g, b in given]
    found = []
    for n in range(max(count, 1)):
        colour = colorsys.hsv_to_rgb((n * 0.618) % 1, 0.75, (0.95, 0.75)[n % 2])
        found.append('#' + ''.join(f'{round(255 * part):02x}' for part in colour))
    return found


def attention_of(layer: Layer | None) -> dict | None:
    """What live.js has to know of a layer beside the outputs of the model."""
    if layer is None:
        return None
    grid = layer.map_grid
    return dict(
        name=layer.name,
        label=layer.label,
        heads=layer.heads,
        groups=layer.groups,
        first=grid.first,
        step=grid.step,
        convention=layer.convention,
    )


def write_page(
    path,
    model: bytes,
    runtime: Runtime,
    *,
    title: str,
    task: str,
    facts: str,
    layer: Layer | None = None,
    resizing: Sequence[dict] = (),
    resizes: bool = False,
    classes: Sequence[str] = (),
    palette: Sequence[str] = ('#0b62c4',),
    examples: Sequence[np.ndarray] = (),
    prepared: bool = False,
    threshold: float = 0.3,
    mask_threshold: float = 0.5,
) -> list[Path]:
    """Writes the live page of a model, and returns its files. There is one unless the model is large.

    Args:
        model: an ONNX file that takes RGB bytes, with the outputs of a Network and those of Watched for the layer.
        facts: a sentence or two about the model.
        resizing: the steps that make its input, as resizing.py has them.
        resizes: whether the input may also be smaller than in its test.
        examples: pictures (H, W, 3) in RGB.
        prepared: the examples are inputs of the model already.
        threshold: the score from which detections are shown at first.
        mask_threshold: the number from which a mask covers a pixel.
    """
    path = Path(path)
    header = dict(
        title=title,
        task=task,
        facts=f'{facts} It is run by ONNX Runtime Web {runtime.version} as WebAssembly, in one thread.',
        classes=list(classes),
        palette=list(palette),
        attention=attention_of(layer),
        resizing=list(resizing),
        resizes=resizes,
        examples=[_example(image) for image in examples],
        prepared=prepared,
        threshold=threshold,
        maskThreshold=mask_threshold,
        colours=COLOURS,
    )
    packed, parts, addresses = _packed(model), [], []
    marks = {
        'TITLE': escape(title),
        'STYLE': _shared('page.css') + _source('live.css'),
        # a closing tag inside would end the script
        'HEADER': json.dumps(header, separators=(',', ':')).replace('<', '\\u003c'),
        'RUNTIME': _packed(runtime.script),
        'WASM': _packed(runtime.wasm),
        'LICENCES': _packed(runtime.licences.encode()),
        'WORKER': _source('worker.js'),
        'ATTENTION': _shared('attention.js'),
        'SCRIPT': _source('live.js'),
    }
    if len(packed) + sum(map(len, marks.values())) > LARGEST:
        folder = path.with_name(f'{path.stem}_files')
        parts = [packed[start : start + PART] for start in range(0, len(packed), PART)]
        addresses = [folder / f'model-{n}.js' for n in range(len(parts))]
        folder.mkdir(parents=True, exist_ok=True)
        for file, part in zip(addresses, parts, strict=True):
            with written_whole(file) as partial:
                partial.write_text(f'(window.modelParts ??= []).push("{part}");\n')
        packed = ''
    marks['MODEL'] = packed
    marks['PARTS'] = '\n'.join(
        f'<script src="{quote(Path(os.path.relpath(file, path.parent)).as_posix())}"></script>' for file in addresses
    )
    marks['SOURCES'] = " 'self'" if addresses else ''
    text = _source('live.html')
    for mark, value in marks.items():
        text = text.replace(f'<!--{mark}-->', value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(text, encoding='utf-8')
    return [path, *addresses]
