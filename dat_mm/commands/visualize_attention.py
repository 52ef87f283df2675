# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/visualize_attention.py does: figures and pages of what a trained model's deformable attention looks at."""

import os
from html import escape
from pathlib import Path
from urllib.parse import quote

from ..errors import UserError
from ..visualize import Placement, View, record
from ..visualize.figures import FIGURES, SUFFIXES
from ..visualize.pictures import find_images, read_picture
from ..visualize.view import boxes_of
from .document import write_document
from .infer import load_predictor


def see_whole(cfg) -> None:
    """Lets a segmentor see each picture at once. In sliding windows, the recording would be of the last window."""
    if (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
        cfg.model.test_cfg = dict(mode='whole')


def look(predictor, image, *, score_thr=0.3, **options) -> View:
    """Records a predictor's model on a picture, and returns the view of it."""
    with record(predictor.inferencer.model) as recording:
        sample = predictor.sample(image)
    picture = read_picture(image)
    placement = Placement.from_meta(sample.metainfo, (picture.shape[1], picture.shape[0]))
    boxes = boxes_of(sample, getattr(predictor, 'meta', {}).get('classes'), score_thr)
    return View(recording, picture, placement, boxes=boxes, title=Path(image).name, **options)


def plan(images, is_folder, out, figures, html) -> dict:
    """Finds where everything is written: {picture: ({kind: file}, page or None)}."""
    unknown = [kind for kind in figures if kind not in FIGURES]
    if unknown:
        raise UserError(f'--figure {unknown[0]} is not one of {", ".join(FIGURES)}')
    out, html = Path(out), html and Path(html)
    as_file = out.suffix.lower() in SUFFIXES
    if out.suffix and not as_file and not out.is_dir():
        raise UserError(f'--out {out}: a figure ends in {", ".join(SUFFIXES)}; the page is --html OUT.html')
    if as_file and (is_folder or len(figures) > 1):
        raise UserError(f'--out {out} is one file, and there are {len(images) * len(figures)} figures: name a folder')
    if html and is_folder == (html.suffix.lower() in ('.html', '.htm')):
        rule = 'a folder of pictures needs a folder for its pages' if is_folder else 'the page must end in .html'
        raise UserError(f'--html {html}: {rule}')
    stems = [image.stem for image in images]
    found = {}
    for image in images:
        # two pictures may differ in their suffix alone
        name = image.stem if stems.count(image.stem) == 1 else image.name
        many = len(figures) > 1
        files = {kind: out if as_file else out / f'{name}{f"_{kind}" if many else ""}.png' for kind in figures}
        found[image] = files, html and (html / f'{name}.html' if is_folder else html)
    return found


def write_gallery(path: Path, title: str, entries) -> None:
    """Writes a page that shows the figures of all pictures, each with a link to its interactive page if it has one."""
    parts = []
    for image, (files, page) in entries.items():
        name = escape(image.name)
        heading = f'<a href="{link(page, path)}">{name}</a>' if page else name
        shown = [
            f'<img loading="lazy" src="{link(file, path)}" alt="{kind} of {name}">' for kind, file in files.items()
        ]
        parts.append(f'<section><h2>{heading}</h2>{"".join(shown)}</section>')
    write_document(path, title, '\n'.join(parts))


def link(file: Path, page: Path) -> str:
    """Makes the address of a file as a page beside it would give it."""
    return quote(Path(os.path.relpath(file, page.parent)).as_posix())


def visualize_attention(
    image,
    config,
    checkpoint,
    *,
    layer=None,
    query=None,
    topk=60,
    figure=('overview',),
    out='attention',
    dpi=200,
    html=None,
    device=None,
    score_thr=0.3,
    cfg_options=(),
):
    """Writes figures, and the interactive page if `html` says where, and returns the paths of all files."""
    if dpi < 1:
        raise UserError(f'--dpi {dpi} is not positive')
    images = find_images(image)
    is_folder = Path(image).is_dir()
    entries = plan(images, is_folder, out, figure, html)
    predictor = load_predictor(
        config, checkpoint, device=device, score_thr=score_thr, cfg_options=cfg_options, edit=see_whole
    )
    written = []
    for path, (files, page) in entries.items():
        view = look(predictor, path, score_thr=score_thr, layer_name=layer, query=query, topk=topk)
        for kind, file in files.items():
            written.append(view.save(file, kind, dpi=dpi))
        if page:
            written.append(view.save(page))
        x, y = view.query
        told = ', '.join(str(file) for file in (*files.values(), page) if file)
        print(f'{path.name}: {view.layer.label}, query {x:g},{y:g}: {told}')
    chosen = view.layer
    print(f'layer {chosen}')
    others = [name for name in view.recording if name != chosen.name]
    if others:
        print(f'other layers: {", ".join(others)}')
    if is_folder:
        gallery = Path(out) / 'index.html'
        write_gallery(gallery, f'Deformable attention in {Path(image).name}', entries)
        written.append(gallery)
        print(f'gallery: {gallery}')
    return written
