# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Exported files, run: ONNX by ONNX Runtime, and OpenVINO's own format by OpenVINO."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np

from ..errors import UserError
from .graph import PREFIX, read_metadata
from .pixels import Preprocessing

SUFFIXES = ('.onnx', '.xml')


def is_exported(path) -> bool:
    """Says whether a path is named as a file that tools/export.py writes."""
    return Path(path).suffix in SUFFIXES


def package(name: str):
    """Imports a package of the extra `deploy`."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f'{name} is needed: pip install "dat-mm[deploy]" ({error})') from error


class Exported:
    """A file and the runtime that runs it. Called with images, it returns the outputs by their names.

    Images are RGB bytes (B, H, W, 3) of numpy, whether the file normalises them itself or not.

    Args:
        threads: of one call. None leaves the number to the runtime.
    """

    def __init__(self, path, *, threads: int | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f'{path}: no such file')
        self.load(threads)
        self.task: str = self.metadata['task']
        self.preprocessing = Preprocessing(**self.metadata['preprocessing'])

    def load(self, threads) -> None:
        """Opens the file and sets `metadata`, and what `set_size` does.

        These are `size`, the (height, width) that it takes, and `batch`, how many images. None stands for any.
        """
        raise NotImplementedError

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the graph."""
        raise NotImplementedError

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        size = images.shape[1:3]
        if self.size is not None and self.size != size:
            wanted, given = ('x'.join(map(str, x)) for x in (self.size, size))
            raise UserError(f'{self.path} takes images of {wanted} pixels, not {given}; export it without --shape')
        images = images if self.metadata['inside'] else self.preprocessing.arrays(images)
        if self.batch is None or len(images) == self.batch:
            return self.run(images)
        parts = [self._run_few(images[first : first + self.batch]) for first in range(0, len(images), self.batch)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_few(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the graph on as many images as it takes or fewer, among which the last is repeated."""
        missing = self.batch - len(image)
        found = self.run(np.concatenate([image, image[-1:].repeat(missing, axis=0)]))
        return {name: value[: len(image)] for name, value in found.items()}

    def set_size(self, shape) -> None:
        """Notes what is fixed of the image and their number, from the sizes of the input, which are numbers there."""
        self.batch = shape[0] if isinstance(shape[0], int) else None
        size = tuple(shape[1:3] if self.metadata['inside'] else shape[2:4])
        self.size = size if all(isinstance(n, int) for n in size) else None


class OnnxFile(Exported):
    """An ONNX file, run by ONNX Runtime on the CPU."""

    def load(self, threads):
        onnxruntime = package('onnxruntime')
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # it was measured to take a third more memory, and no less time
        if threads:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(str(self.path), options, providers=['CPUExecutionProvider'])
        except Exception as error:
            raise UserError(f'{self.path} is no ONNX file that can be run: {str(error).splitlines()[0]}') from error
        self.metadata = read_metadata(self.session.get_modelmeta().custom_metadata_map, self.path)
        self.names = [output.name for output in self.session.get_outputs()]
        self.set_size(self.session.get_inputs()[0].shape)

    def run(self, image):
        return dict(zip(self.names, self.session.run(self.names, {'image': image}), strict=True))


class OpenVinoFile(Exported):
    """A model in OpenVINO's format, run on the CPU in float32.

    OpenVINO by itself computes in bfloat16 where the processor has it, with errors of a few thousandths.
    `precision='bf16'` lets it.
    """

    def __init__(self, path, *, threads: int | None = None, precision: str = 'f32'):
        self.precision = precision
        super().__init__(path, threads=threads)

    def load(self, threads):
        openvino = package('openvino')
        core = openvino.Core()
        try:
            model = core.read_model(str(self.path))
        except Exception as error:
            raise UserError(f'{self.path} is no model of OpenVINO: {str(error).splitlines()[0]}') from error
        properties = {}
        if model.has_rt_info([PREFIX.rstrip('.')]):
            properties = json.loads(model.get_rt_info([PREFIX.rstrip('.')]).value)
        self.metadata = read_metadata(properties, self.path)
        options = {'INFERENCE_PRECISION_HINT': self.precision, 'PERFORMANCE_HINT': 'LATENCY'}
        if threads:
            options['INFERENCE_NUM_THREADS'] = threads
        self.names = [output.get_any_name() for output in model.outputs]
        shape = model.input('image').partial_shape
        self.set_size([n.get_length() if n.is_static else None for n in shape])
        self.compiled = core.compile_model(model, 'CPU', options)

    def run(self, image):
        found = self.compiled(image)
        return {name: np.array(found[name]) for name in self.names}


def open_exported(path, *, threads: int | None = None) -> Exported:
    """Opens a file that tools/export.py wrote."""
    if not is_exported(path):
        raise UserError(f'{path}: the name must end in {" or ".join(SUFFIXES)}')
    return (OnnxFile if Path(path).suffix == '.onnx' else OpenVinoFile)(path, threads=threads)


def write_openvino(source, target, *, half: bool = False) -> None:
    """Writes an ONNX file in OpenVINO's format: the graph as XML, and the weights beside it, in 16 bits if asked."""
    openvino, onnx = package('openvino'), package('onnx')
    properties = {item.key: item.value for item in onnx.load(str(source)).metadata_props}
    model = openvino.convert_model(str(source))
    model.set_rt_info(json.dumps(properties), [PREFIX.rstrip('.')])
    openvino.save_model(model, str(target), compress_to_fp16=half)
