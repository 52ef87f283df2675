# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""An unpickler for what torch.save writes. It calls the functions of allowed.py, and nothing that a file names."""

from collections import Counter, OrderedDict
from struct import unpack

from .allowed import NAMES, Name, Storage, build
from .limits import Allowance, Refused, check_key, clean

_OPCODE = 128  # bytes that one opcode costs at most: an empty container, and its places on the stack and in the memo
_LINE = 256  # the longest name of a module or of something in one
_LONG = 16  # bytes of the largest integer
_DICTS = {dict, OrderedDict, Counter}
_RENAMED = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}  # torch.save writes the names of Python 2


class Unpickler:
    """Reads one pickle, or several in a row, from a file with `left` bytes in it.

    `storage` is called with the key, the type and the number of elements of each storage that the pickle names.
    `objects` are more classes than NAMES has: {name: (make, fill)}, with `make()` giving an empty object and
    `fill(object, state)` putting in its checked state.
    """

    def __init__(self, file, left: int, allowance: Allowance, storage=None, objects=None):
        self.file, self.left, self.allowance, self.storage = file, left, allowance, storage
        objects = objects or {}
        self.names = {**NAMES, **{name: Name(name, new=make) for name, (make, _) in objects.items()}}
        self.fill = {type(make()): fill for make, fill in objects.values()}

    def load(self):
        self.stack, self.marks, self.memo = [], [], {}
        while True:
            code = self.take(1)
            if code == b'.':
                return self.stack.pop()
            self.allowance.spend(_OPCODE)
            run = _OPERATIONS.get(code)
            if run is None:
                raise Refused(f'its pickle has the opcode {code!r}, which torch.save does not write')
            run(self)

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise Refused('its pickle is cut off')
        self.left -= count
        return self.file.read(count)

    def number(self, form: str, count: int):
        return unpack(form, self.take(count))[0]

    def line(self) -> str:
        found = self.file.readline(min(_LINE, self.left))
        self.left -= len(found)
        if not found.endswith(b'\n'):
            raise Refused('its pickle has a name that does not end')
        return found[:-1].decode()

    def push(self, value) -> None:
        self.stack.append(value)

    def top(self, *kinds):
        """Returns the container on the stack, which must be of one of these types."""
        found = self.stack[-1]
        if type(found) not in kinds:
            raise Refused(f'its pickle fills a {type(found).__name__}')
        return found

    def since_mark(self) -> list:
        found, self.stack = self.stack, self.marks.pop()
        return found

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def text(self) -> None:
        found = str(self.take(self.number('<I', 4)), 'utf-8', 'surrogatepass')
        self.allowance.spend(found.__sizeof__())
        self.push(found)

    def old_text(self) -> None:
        """A string of Python 2, which is text unless it cannot be."""
        found = self.take(self.take(1)[0])
        try:
            self.push(found.decode())
        except UnicodeDecodeError:
            self.push(found)

    def long(self) -> None:
        count = self.take(1)[0]
        if count > _LONG:
            raise Refused(f'its pickle has an integer of {count} bytes')
        self.push(int.from_bytes(self.take(count), 'little', signed=True))

    def protocol(self) -> None:
        found = self.take(1)[0]
        if found != 2:
            raise Refused(f'its pickle has protocol {found}, and torch.save writes protocol 2')

    def name(self) -> None:
        module, name = self.line(), self.line()
        full = f'{_RENAMED.get(module, module)}.{name}'
        if full not in self.names:
            raise Refused(f'it names {clean(full)}, which could run code')
        self.push(self.names[full])

    def reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or type(name) is not Name or name.call is None:
            raise Refused('its pickle calls something that is no function')
        self.push(name.call(self.allowance, *arguments))

    def new(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if arguments != () or type(name) is not Name or name.new is None:
            raise Refused('its pickle makes an object of something that is no class')
        self.allowance.spend(8 * _OPCODE)
        self.push(name.new())

    def build(self) -> None:
        state, found = self.stack.pop(), self.stack[-1]
        fill = self.fill.get(type(found))
        if fill is not None:
            fill(found, state)
        else:
            build(self.allowance, found, state)

    def persistent(self) -> None:
        found = self.stack.pop()
        if type(found) is not tuple or len(found) not in (5, 6) or found[0] != 'storage' or self.storage is None:
            raise Refused('its pickle refers to something that is no storage')
        _, kind, key, _, count, *view = found
        if view not in ([], [None]):
            raise Refused('its pickle has a view of a storage')
        if type(kind) is not Name or kind.dtype is None or type(key) is not str or type(count) is not int or count < 0:
            raise Refused('its pickle has a malformed storage')
        self.push(Storage(self.storage(key, kind.dtype, count), kind.dtype))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def append(self) -> None:
        value = self.stack.pop()
        self.top(list).append(value)

    def appends(self) -> None:
        values = self.since_mark()
        self.top(list).extend(values)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.top(*_DICTS)[check_key(key)] = value

    def set_items(self) -> None:
        values = self.since_mark()
        target = self.top(*_DICTS)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[check_key(key)] = value

    def last(self, count: int) -> None:
        if len(self.stack) < count:
            raise Refused('its pickle takes more from the stack than there is')
        self.stack[-count:] = [tuple(self.stack[-count:])]


_OPERATIONS = {
    b'\x80': Unpickler.protocol,
    b'(': Unpickler.mark,
    b'N': lambda self: self.push(None),
    b'\x88': lambda self: self.push(True),
    b'\x89': lambda self: self.push(False),
    b'J': lambda self: self.push(self.number('<i', 4)),
    b'K': lambda self: self.push(self.take(1)[0]),
    b'M': lambda self: self.push(self.number('<H', 2)),
    b'\x8a': Unpickler.long,
    b'G': lambda self: self.push(self.number('>d', 8)),
    b'X': Unpickler.text,
    b'U': Unpickler.old_text,
    b')': lambda self: self.push(()),
    b'\x85': lambda self: self.last(1),
    b'\x86': lambda self: self.last(2),
    b'\x87': lambda self: self.last(3),
    b't': lambda self: self.push(tuple(self.since_mark())),
    b']': lambda self: self.push([]),
    b'a': Unpickler.append,
    b'e': Unpickler.appends,
    b'}': lambda self: self.push({}),
    b's': Unpickler.set_item,
    b'u': Unpickler.set_items,
    b'c': Unpickler.name,
    b'R': Unpickler.reduce,
    b'\x81': Unpickler.new,
    b'b': Unpickler.build,
    b'Q': Unpickler.persistent,
    b'q': lambda self: self.put(self.take(1)[0]),
    b'r': lambda self: self.put(self.number('<I', 4)),
    b'h': lambda self: self.push(self.memo[self.take(1)[0]]),
    b'j': lambda self: self.push(self.memo[self.number('<I', 4)]),
}
