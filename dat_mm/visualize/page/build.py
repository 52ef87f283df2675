# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Puts the page together: header, bytes, script and looks in one file that needs no network."""

import base64
import gzip
import json
from functools import cache
from html import escape
from importlib.resources import files

import numpy as np

from ..inline import source_of
from ..statistics import summary
from ..view import COLOURS, View
from .pack import MOST_QUERIES, largest_error, pack

BUDGET = 15_000_000  # bytes of a page
BITS = (16, 12, 10, 8, 7, 6, 5, 4)  # of a number of a query or a key: as many as the budget allows
LONGEST = 1600  # pixels along a side of the picture on the page


def _picture(view: View) -> str:
    """The picture as the page has it: without loss where it is small, as JPEG and not too large elsewhere."""
    from PIL import Image

    image = Image.fromarray(view.picture)
    width, height = image.size
    small = width * height <= 256 * 256
    if max(width, height) > LONGEST:
        ratio = LONGEST / max(width, height)
        image = image.resize((max(1, round(width * ratio)), max(1, round(height * ratio))), Image.Resampling.LANCZOS)
    if small:
        return source_of(lambda file: image.save(file, 'PNG'), 'png')
    return source_of(lambda file: image.save(file, 'JPEG', quality=88), 'jpeg')


def _join(layers) -> tuple[list[dict], bytes]:
    """Writes the arrays of all layers one after the other, and tells in each layer's header where they are."""
    chunks, headers, offset = [], [], 0
    for plain, arrays in layers:
        places = {}
        for name, array in arrays.items():
            data = np.ascontiguousarray(array).tobytes()
            places[name] = dict(type=array.dtype.name, shape=array.shape, at=offset)
            data += bytes(-len(data) % 4)  # page.js reads floats in place, at multiples of 4
            chunks.append(data)
            offset += len(data)
        headers.append(dict(plain, arrays=places))
    return headers, b''.join(chunks)


@cache
def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding='utf-8')


def smallest_size(layers, bits: int) -> float:
    """About how many bytes of a page the queries and keys of the layers are at least, in so many bits."""
    numbers = sum(
        layer.k.numel() + min(layer.queries, MOST_QUERIES // 2) * layer.q.shape[0] * layer.q.shape[2]
        for layer in layers
    )
    return numbers * (bits - 3) / 8 * 4 / 3


def make_page(view: View, *, budget: int = BUDGET) -> str:
    """The interactive page of a view as HTML. All layers of the recording are in it."""
    picture = _picture(view)
    parts = ('page.html', 'page.css', 'attention.js', 'page.js')
    frame = len(picture) + sum(len(_source(name)) for name in parts) + 20_000
    for bits in BITS:
        if bits > 8 and smallest_size(view.layers, bits) > budget:
            continue  # compression does not halve such numbers: do not try
        packed = [pack(layer, bits) for layer in view.layers]
        headers, content = _join(packed)
        data = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
        if len(data) + frame <= budget:
            break
    for header, layer, arrays in zip(headers, view.layers, (arrays for _, arrays in packed), strict=True):
        header.update(summary(layer), error=largest_error(layer, arrays))
    placement = view.placement
    header = dict(
        title=view.title or view.recording.model_name,
        picture=picture,
        size=placement.size,
        placement=dict(
            scale=placement.scale, corner=placement.corner, kept=placement.kept,
            across=placement.flip in ('horizontal', 'diagonal'), down=placement.flip in ('vertical', 'diagonal'),
        ),
        boxes=[dict(left=b.left, top=b.top, right=b.right, bottom=b.bottom, title=b.title) for b in view.boxes],
        layers=headers,
        layer=list(view.recording).index(view.layer_name),
        query=view.query,
        topk=view.topk,
        colours=COLOURS,
        bits=bits,
    )  # fmt: skip
    text = _source('page.html')
    for mark, value in (
        ('TITLE', escape(header['title'])),
        ('STYLE', _source('page.css')),
        # a closing tag inside would end the script
        ('HEADER', json.dumps(header, separators=(',', ':')).replace('<', '\\u003c')),
        ('DATA', data),
        ('ATTENTION', _source('attention.js')),
        ('SCRIPT', _source('page.js')),
    ):
        text = text.replace(f'<!--{mark}-->', value)
    return text
