# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The directory of a zip file as torch.save writes it: parts that are stored as they are, one after the other."""

import struct
from typing import NamedTuple

from .limits import Allowance, Refused

START = b'PK\x03\x04'
_LOCAL = struct.Struct('<4s5H3I2H')
_CENTRAL = struct.Struct('<4s6H3I5H2I')
_END = struct.Struct('<4s4H2IH')
_END64 = struct.Struct('<4sQ2H2I4Q')
_LOCATOR = struct.Struct('<4sIQI')
_PART = 1024  # bytes that one part costs in memory, with its name


class Part(NamedTuple):
    start: int
    size: int
    crc: int


def take(file, count: int, size: int) -> bytes:
    """Reads so many bytes; `size` is that of the file, so that nothing is allocated for bytes that are not there."""
    if count > size - file.tell():
        raise Refused('it is cut off')
    return file.read(count)


def _read_at(file, size, at, form):
    if not 0 <= at <= size:
        raise Refused('its directory points outside the file')
    file.seek(at)
    return form.unpack(take(file, form.size, size))


def _find_directory(file, size):
    """Finds where the directory begins and how long it is."""
    at = size - _END.size
    mark, _, _, _, _, length, start, comment = _read_at(file, size, at, _END)
    if mark != b'PK\x05\x06' or comment:
        raise Refused('it is cut off, or has something after its directory')
    if at >= _LOCATOR.size:
        locator = _read_at(file, size, at - _LOCATOR.size, _LOCATOR)
        if locator[0] == b'PK\x06\x07':
            at = locator[2]
            mark, *_, length, start = _read_at(file, size, at, _END64)
            if mark != b'PK\x06\x06':
                raise Refused('the end of its directory is altered')
    if start + length != at:
        raise Refused('its directory does not end where the file says')
    return start, length


def _wide(extra, values):
    """Puts in the numbers that need 64 bits, which stand in an extra field."""
    wanted = sum(value == 0xFFFFFFFF for value in values)
    at = 0
    while wanted and at + 4 <= len(extra):
        kind, length = struct.unpack_from('<2H', extra, at)
        if kind == 1 and length >= 8 * wanted:
            numbers = iter(struct.unpack_from(f'<{wanted}Q', extra, at + 4))
            return [next(numbers) if value == 0xFFFFFFFF else value for value in values]
        at += 4 + length
    return values


def read_directory(file, size: int, allowance: Allowance) -> dict[str, Part]:
    """Reads where each part of a zip file lies. Parts that are compressed, doubled or overlap are refused."""
    start, length = _find_directory(file, size)
    allowance.spend(length)
    file.seek(start)
    directory, at, found = take(file, length, size), 0, {}
    if b'/constants.pkl' in directory:
        raise Refused('it is a TorchScript program, which could run code')
    while at < length:
        allowance.spend(_PART)
        mark, _, _, flags, method, *_, crc, packed, full, name, extra, note, _, _, _, header = _CENTRAL.unpack_from(
            directory, at
        )
        at += _CENTRAL.size
        if mark != b'PK\x01\x02' or at + name + extra + note > length:
            raise Refused('its directory is altered')
        raw, more = directory[at : at + name], directory[at + name : at + name + extra]
        at += name + extra + note
        full, packed, header = _wide(more, [full, packed, header])
        if method or full != packed:
            raise Refused('a part of it is compressed, and torch.save compresses nothing')
        if flags & 1:
            raise Refused('a part of it is encrypted')
        label = raw.decode()
        if label in found:
            raise Refused('it has two parts of one name')
        mark, _, _, method, *_, own, extra = _read_at(file, size, header, _LOCAL)
        if mark != START or method or own != name or take(file, name, size) != raw:
            raise Refused('the header of a part is altered')
        found[label] = Part(header + _LOCAL.size + name + extra, full, crc)
    free = 0
    for part in sorted(found.values()):
        if part.start < free:
            raise Refused('its parts overlap')
        free = part.start + part.size
    if free > start:
        raise Refused('a part of it is larger than the file')
    return found
