# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime for browsers: two files of the npm package onnxruntime-web, which pip has not.

The package is downloaded once, and compared with the hash of the version that is written here. The two files stay in
${DAT_MM_CACHE:-${XDG_CACHE_HOME:-~/.cache}/dat_mm}. A machine without a network is given them by --runtime.
"""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from ...cache import cache_folder
from ...errors import UserError
from ...weights import written_whole
from ..runtimes import package

NAME, VERSION = 'onnxruntime-web', '1.30.0'
SHA512 = 'q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='  # of the package
REGISTRY = 'https://registry.npmjs.org'
SCRIPT, WASM = 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'
SECONDS = 60  # without a byte, before a download counts as failed


class Runtime(NamedTuple):
    """The script and the WebAssembly of ONNX Runtime, and the licences that go with them."""

    script: bytes
    wasm: bytes
    licences: str

    @property
    def version(self) -> str:
        """The version that the script says it has."""
        found = re.search(rb'ONNX Runtime Web v([\w.-]+)', self.script[:500])
        return found[1].decode() if found else 'unknown'


def find_runtime(given=None) -> Runtime:
    """Finds the two files: in a folder or package that is given, else in the cache, else on the npm registry."""
    if given is not None:
        script, wasm = _read(Path(given))
    else:
        script, wasm = _cached()
    return Runtime(script, wasm, _licences())


def _read(path: Path) -> tuple[bytes, bytes]:
    """Reads the two files from a folder, such as node_modules/onnxruntime-web, or from the package that npm packs."""
    if path.is_dir():
        for folder in (path, path / 'dist', path / 'package' / 'dist'):
            if (folder / SCRIPT).is_file() and (folder / WASM).is_file():
                return (folder / SCRIPT).read_bytes(), (folder / WASM).read_bytes()
        raise UserError(f'--runtime {path} has no {SCRIPT} and {WASM}, nor has its folder dist')
    try:
        return _unpack(path.read_bytes())
    except (OSError, KeyError, tarfile.TarError) as error:
        raise UserError(f'--runtime {path} is neither a folder nor a package {NAME}: {error}') from error


def _unpack(archive: bytes) -> tuple[bytes, bytes]:
    with tarfile.open(fileobj=BytesIO(archive), mode='r:gz') as content:
        found = {Path(member.name).name: member for member in content if member.isfile() and '/dist/' in member.name}
        return content.extractfile(found[SCRIPT]).read(), content.extractfile(found[WASM]).read()


def _cached() -> tuple[bytes, bytes]:
    folder = cache_folder() / f'{NAME}-{VERSION}'
    if not all((folder / name).is_file() for name in (SCRIPT, WASM)):
        parts = _unpack(_download())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in zip((SCRIPT, WASM), parts, strict=True):
                with written_whole(folder / name, mark=f'.{os.getpid()}') as partial:
                    partial.write_bytes(content)
        except OSError as error:
            print(f'{NAME} is not kept for the next page: {error}')
        return parts
    return _read(folder)


def _registry() -> str:
    """The address of the registry that npm would ask."""
    for name in ('npm_config_registry', 'NPM_CONFIG_REGISTRY'):
        if os.environ.get(name):
            return os.environ[name].rstrip('/')
    if npm := shutil.which('npm'):
        asked = subprocess.run([npm, 'config', 'get', 'registry'], capture_output=True, text=True)
        if asked.stdout.startswith('http'):
            return asked.stdout.strip().rstrip('/')
    return REGISTRY


def _download() -> bytes:
    """Downloads the package, and compares it with the hash."""
    url = f'{_registry()}/{NAME}/-/{NAME}-{VERSION}.tgz'
    todo = f'elsewhere: npm pack {NAME}@{VERSION}; here: --runtime {NAME}-{VERSION}.tgz'
    print(f'{NAME} {VERSION} is downloaded once, 33 MB')
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            archive = answer.read()
    except (OSError, ValueError) as error:
        raise UserError(f'the page needs {NAME}, and {url} cannot be had ({error}); {todo}') from error
    if base64.b64encode(hashlib.sha512(archive).digest()).decode() != SHA512:
        raise UserError(f'{url} is not the file that npm published: its SHA-512 is another; {todo}')
    return archive


def _licences() -> str:
    """The licence of ONNX Runtime, and those of what is compiled into it, as its Python package tells them."""
    folder = Path(package('onnxruntime').__file__).parent
    texts = [folder / name for name in ('LICENSE', 'ThirdPartyNotices.txt')]
    return '\n\n'.join(text.read_text(encoding='utf-8', errors='replace') for text in texts if text.is_file())
