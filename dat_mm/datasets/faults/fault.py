# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""One fault, and how the values in it are written."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

LENGTH = 60  # of a value in a line


@dataclass(frozen=True)
class Fault:
    """A fault of a file. `kind` is what faults are counted by, `what` tells the value and the rule."""

    file: str
    kind: str
    what: str

    def __str__(self):
        return f'{shown(self.file)}: {self.what}'


def shown(path) -> str:
    """Writes the name of a file so that it stays on one line and any terminal can print it."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


def brief(value) -> str:
    """Writes any value of an annotation in a few characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; more digits than Python writes
        return f'a {type(value).__name__} too long to show'
    return text if len(text) <= LENGTH else f'{text[: LENGTH - 3]}...'


def is_number(value) -> bool:
    """Says whether a value is a number that a float can hold: true, NaN, Infinity and 1e999 are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def read_bytes(path) -> tuple[bytes | None, Fault | None]:
    """Reads a file; returns (content, None), or (None, what is wrong with the file)."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return None, Fault(str(path), 'missing file', 'no such file')
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, 'strerror', None) or str(error)
        return None, Fault(str(path), 'unreadable file', f'cannot be read ({reason})')
    if not content:
        return None, Fault(str(path), 'empty file', 'is empty (0 bytes)')
    return content, None


def read_json(path) -> tuple[object, Fault | None]:
    """Reads a JSON file; returns (content, None), or (None, what is wrong with the file)."""
    content, fault = read_bytes(path)
    if fault:
        return None, fault
    try:
        return json.loads(content), None
    except json.JSONDecodeError as error:
        where = f'line {error.lineno}, column {error.colno}: {error.msg}'
    except RecursionError:
        where = 'its values are nested too deeply'
    except ValueError as error:  # no UTF-8, or a number of too many digits
        where = str(error).splitlines()[0]
    return None, Fault(str(path), 'no JSON', f'is no JSON ({where})')
