# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The live page of an exported model: what its config says about pictures and classes goes into it."""

from itertools import islice
from pathlib import Path

import numpy as np

from ..deploy.networks import Network
from ..deploy.page.build import palette_of, write_page
from ..deploy.page.resizing import resizing_of
from ..deploy.page.runtime import Runtime
from ..deploy.page.watched import LEFT_OUT, leave_out
from ..errors import UserError
from ..version import __version__
from ..visualize.layer import Layer
from ..visualize.pictures import find_images, read_picture

EXAMPLES = 4  # pictures on the page
LONGEST = 1024  # pixels along a side of an example


def check_page(page, preprocess: str) -> None:
    """Raises unless a page of such a name and of such a model can be written."""
    if Path(page).suffix.lower() not in ('.html', '.htm'):
        raise UserError(f'--page {page}: the name must end in .html')
    if preprocess != 'inside':
        raise UserError('--page: the model on a page normalises pixels itself; leave out --preprocess outside')


def _reduced(image: np.ndarray) -> np.ndarray:
    """A picture, made smaller where it is larger than an example has to be."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST, LONGEST))
    return np.asarray(picture)


def find_examples(source, given) -> tuple[list[np.ndarray], bool]:
    """Finds pictures for the page, and tells whether they are inputs of the model already.

    They are those of a folder that is given, or inputs of the test of the config where its data is there.
    """
    if given is not None:
        return [_reduced(read_picture(path)) for path in find_images(given)[:EXAMPLES]], False
    if source.pipeline is None:
        return [], False
    try:
        return [image[0] for image in islice(source.pictures(), EXAMPLES)], True
    except (OSError, ValueError, RuntimeError) as error:
        print(f'the page has no examples: the test data of the config is not there ({str(error).splitlines()[0]})')
        return [], False


def _mask_threshold(model) -> float:
    cfg = getattr(getattr(model, 'roi_head', None), 'test_cfg', None) or {}
    return cfg.get('mask_thr_binary', 0.5)


def write_live(
    source, config, network: Network, layer: Layer | None, file, page, runtime: Runtime, *, shape=None, examples=None
) -> list[Path]:
    """Writes the live page of a source whose network is in an ONNX file, with the outputs for a layer if there is one.

    The other arguments are those of tools/export.py.
    """
    small = Path(file).with_name('page.onnx')
    leave_out(file, small, network.outputs if network.task == 'backbone' else LEFT_OUT)
    resizing, unknown = resizing_of(source.pipeline, shape)
    for name in unknown:
        print(f'the page leaves out {name} of the test pipeline')
    pictures, prepared = find_examples(source, examples)
    if shape is not None and prepared and any(image.shape[:2] != tuple(shape) for image in pictures):
        prepared = False
    name = Path(config).stem
    written = write_page(
        page,
        small.read_bytes(),
        runtime,
        title=name,
        task=network.task,
        facts=f'The model is {name}, exported by dat_mm {__version__}.',
        layer=layer,
        resizing=resizing,
        resizes=shape is None and network.task in ('detection', 'segmentation'),
        classes=source.classes,
        palette=palette_of(len(source.classes), source.palette),
        examples=pictures,
        prepared=prepared,
        mask_threshold=_mask_threshold(network.model),
    )
    size = sum(path.stat().st_size for path in written)
    told = f'attention of {layer.label}' if layer is not None else 'no points: the model has no deformable attention'
    print(f'{page}: {size / 1e6:.1f} MB in {len(written)} files, {len(pictures)} examples, {told}')
    return written
