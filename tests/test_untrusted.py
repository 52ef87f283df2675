# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Files that mean harm: none runs anything, and none takes much memory or time."""

import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from dat_mm.untrusted import Refused, is_whole, read

pytestmark = pytest.mark.one_stack

WEIGHTS = OrderedDict(w=torch.arange(6.0).view(2, 3))


class Call:
    """What a pickle calls when it is read."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def archive(path, pickled, storages=(b'\0' * 24,), compression=zipfile.ZIP_STORED):
    """A checkpoint in torch's format with a pickle of one's own."""
    with zipfile.ZipFile(path, 'w', compression) as file:
        file.writestr('archive/data.pkl', pickled)
        file.writestr('archive/byteorder', b'little')
        for n, content in enumerate(storages):
            file.writestr(f'archive/data/{n}', content)
        file.writestr('archive/version', b'3\n')
    return path


class Pickler(pickle.Pickler):
    """Pickles storages as torch.save does, with sizes of one's own."""

    def persistent_id(self, obj):
        return obj.reference if isinstance(obj, Storage) else None


class Storage:
    def __init__(self, numel, key='0', kind=torch.FloatStorage):
        self.reference = ('storage', kind, key, 'cpu', numel)


def pickled(content) -> bytes:
    file = io.BytesIO()
    Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def tensor(size, stride, numel=6, offset=0, rebuild=torch._utils._rebuild_tensor_v2):
    return Call(rebuild, Storage(numel), offset, size, stride, False, OrderedDict())


def refused(path, match):
    with pytest.raises(Refused, match=match):
        read(path)


CODE = {
    'system': Call(os.system, 'touch RAN'),
    'popen': Call(os.popen, 'touch RAN'),
    'subprocess': Call(subprocess.Popen, ['touch', 'RAN']),
    'eval': Call(eval, 'open("RAN", "w")'),
    'exec': Call(exec, 'open("RAN", "w")'),
    'import': Call(__import__, 'antigravity'),
    'open': Call(open, 'RAN', 'w'),
    'torch.load': Call(torch.load, 'RAN'),
    'torch.hub': Call(torch.hub.load_state_dict_from_url, 'http://127.0.0.1/RAN'),
    'numpy.load': Call(np.load, 'RAN'),
    'remove': Call(os.remove, 'a.pth'),
}


@pytest.mark.parametrize('form', ['zip', 'legacy', 'nested'])
@pytest.mark.parametrize('name', CODE)
def test_nothing_is_run(name, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path('a.pth')
    if form == 'nested':
        torch.save({'state_dict': WEIGHTS, 'message_hub': {'log_scalars': [{'x': (CODE[name],)}]}}, path)
    else:
        torch.save({'state_dict': WEIGHTS, 'x': CODE[name]}, path, _use_new_zipfile_serialization=form == 'zip')
    refused(path, r'a\.pth is refused: it names .*, which could run code')
    assert not Path('RAN').exists() and path.exists()


def test_bare_pickles_are_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('a.pth').write_bytes(pickle.dumps(CODE['system']))
    refused(Path('a.pth'), 'torch.save writes no file that begins so')
    assert not Path('RAN').exists()


def test_attributes_are_not_reached_by_getattr(tmp_path):
    code = b'\x80\x02cbuiltins\ngetattr\ncbuiltins\ndict\nX\x0e\0\0\0__subclasses__\x86R.'
    refused(archive(tmp_path / 'a.pth', code), 'a getattr, which could run code')


LARGE = 2**40
ABSURD = {
    'more numbers than the file': tensor((LARGE,), (1,), numel=LARGE),
    'numbers again and again': tensor((LARGE,), (0,)),
    'far apart': tensor((2,), (LARGE,)),
    'far away': tensor((2,), (1,), offset=LARGE),
    'negative': tensor((-1,), (1,)),
    'before the beginning': tensor((2,), (1,), offset=-1),
    'no whole numbers': tensor((2.5,), (1,)),
    'numpy array': Call(np.ndarray, (LARGE,)),
    'bytes': Call(bytearray, LARGE),
    'tensor by its size': Call(torch.Tensor, LARGE),
    'list of a range': Call(list, range(LARGE)),
    'storage': Call(torch.UntypedStorage, LARGE),
}


@pytest.mark.parametrize('name', ABSURD)
def test_absurd_sizes_are_refused(name, tmp_path):
    content = ABSURD[name]
    path = archive(tmp_path / 'a.pth', pickled({'state_dict': {'w': content}}))
    with pytest.raises((Refused, ValueError)):
        read(path)


COUNTED = {
    'text of protocol 2': b'\x80\x02X\xff\xff\xff\x7fx.',
    'a memo of one object': b'\x80\x02Nr\xff\xff\xff\x7f.',
    'an array of bytes': b'\x80\x05\x96\0\0\0\0\0\1\0\0x.',
    'bytes': b'\x80\x04\x8e\0\0\0\0\0\1\0\0x.',
    'text': b'\x80\x04\x8d\0\0\0\0\0\1\0\0x.',
    'a number': b'\x80\x02\x8b\xff\xff\xff\x7fx.',
}


@pytest.mark.parametrize('name', COUNTED)
def test_what_is_counted_is_there(name, tmp_path):
    """Python's unpickler would make room for it first. A place in the memo is a key here, and makes no room."""
    path = archive(tmp_path / 'a.pth', COUNTED[name])
    if 'memo' in name:
        assert read(path) is None
    else:
        refused(path, 'its pickle is cut off|has protocol [45]|has the opcode')


def text(value: str) -> bytes:
    return b'X' + len(value).to_bytes(4, 'little') + value.encode()


def doubled(levels: int) -> bytes:
    """A list that holds another twice, which holds a third twice, and so on."""
    lists = (b'](h%ch%ceq%c' % (n, n, n + 1) for n in range(levels))
    return b']q\0' + b''.join(lists)


MILLION = b'X' + (10**6).to_bytes(4, 'little') + b'a' * 10**6
# what a few bytes grow to, in Python or in the hands of whoever walks through it
GROWS = {
    'bytes again and again': (
        b'](c_codecs\nencode\nq\0' + MILLION + text('latin1') + b'\x86q\1R' + b'h\0h\1R' * 1000 + b'e',
        'needs more',
    ),
    'a set again and again': (
        b'](c__builtin__\nset\nq\0](' + b'K\1' * 100_000 + b'e\x85q\1R' + b'h\0h\1R' * 1000 + b'e',
        'needs more',
    ),
    'lists without end': (b'](' + b']' * 3_000_000 + b'e', 'needs more'),
    'a list twice, sixty times': (doubled(60), 'needs more'),
    'a list in itself': (b']q\0h\0a', 'nested more than 64 deep'),
    'a dict in itself': (b'}q\0' + text('x') + b'h\0s', 'nested more than 64 deep'),
    'a deep tuple': (b')' + b'\x85' * 1000, 'nested more than 64 deep'),
    'a deep tuple as key': (b'}' + b')' + b'\x85' * 300_000 + b'Ns', 'a key that is a tuple'),
    'a deep tuple in a set': (b'c__builtin__\nset\n]' + b')' + b'\x85' * 100_000 + b'a\x85R', 'a key that is a tuple'),
    'keys with one hash': (b'}(' + b'\x8a\x09' + b'\xff' * 8 + b'\x1fNu', 'an integer of more than 64 bits'),
    'a large integer': (b'\x8a\xff' + b'\1' * 255, 'an integer of 255 bytes'),
}


@pytest.mark.parametrize('name', GROWS)
def test_what_grows_is_refused(name, tmp_path):
    code, reason = GROWS[name]
    refused(archive(tmp_path / 'a.pth', b'\x80\x02' + code + b'.'), reason)


def test_numbers_that_many_tensors_share_count_for_each(tmp_path):
    numbers = torch.zeros(2_500_000)
    torch.save([numbers.view(-1) for _ in range(2)], tmp_path / 'two.pth')
    assert len(read(tmp_path / 'two.pth')) == 2
    torch.save([numbers.view(-1) for _ in range(100)], tmp_path / 'many.pth')
    refused(tmp_path / 'many.pth', 'needs more than 256 MB and 4 times the size of the file')


STATES = {
    'of a name': b'ctorch.storage\nUntypedStorage\n}' + text('dtype') + b'ctorch\nfloat64\nsb',
    'of a type': b'ctorch\nfloat64\n}b',
    'of a function': b'c_codecs\nencode\nN}' + text('__defaults__') + b'Ns\x86b',
    'of a tensor': pickled(tensor((2, 3), (3, 1)))[2:-1] + b'}b',
}


@pytest.mark.parametrize('name', STATES)
def test_no_state_is_set_that_lasts(name, tmp_path):
    """What a file would do to the reader, or to torch, would do it to the files that are read after it."""
    refused(archive(tmp_path / 'a.pth', b'\x80\x02' + STATES[name] + b'.'), 'sets the state of a')


def test_a_name_is_told_without_what_moves_a_cursor(tmp_path):
    refused(archive(tmp_path / 'a.pth', b'\x80\x02cos\n\x1b[2Jx\n.'), r'it names os\.\?\[2Jx, which could run code')


def test_numbers_of_another_byte_order_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as file:
        file.writestr('a/data.pkl', b'\x80\x02N.')
        file.writestr('a/byteorder', {'little': b'big', 'big': b'little'}[sys.byteorder])
    refused(tmp_path / 'a.pth', 'another byte order')


def test_a_part_twice_is_refused(tmp_path):
    path = archive(tmp_path / 'a.pth', b'\x80\x02N.')
    with pytest.warns(UserWarning, match='Duplicate'), zipfile.ZipFile(path, 'a') as file:
        file.writestr('archive/data.pkl', b'\x80\x02N.')
    refused(path, 'two parts of one name')


def test_the_older_format_names_no_more_numbers_than_it_has(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'w': torch.arange(6.0)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert data.count(b'K\x06N') == 1
    path.write_bytes(data.replace(b'K\x06N', b'J\xff\xff\xff\x7fN'))
    refused(path, 'it names more numbers than are in it')


@pytest.mark.parametrize('mapped', [True, False])
def test_parts_beyond_4_gb_are_found(mapped, tmp_path):
    """Their places stand in an extra field of the directory, as do those of any part that is written so."""
    path = tmp_path / 'a.pth'
    torch.save({'w': torch.arange(6.0)}, path)
    with zipfile.ZipFile(path) as file:
        parts = {info.filename: file.read(info) for info in file.infolist()}
    with zipfile.ZipFile(path, 'w') as file:
        for name, content in parts.items():
            with file.open(zipfile.ZipInfo(name), 'w', force_zip64=True) as part:
                part.write(content)
    data = bytearray(path.read_bytes())
    at = data.rindex(b'PK\1\2', 0, data.rindex(b'data/0'))
    name, header = struct.unpack_from('<H', data, at + 28)[0], struct.unpack_from('<I', data, at + 42)[0]
    extra = struct.pack('<2HQ', 1, 8, header)  # the place of the storage, moved to the extra field
    struct.pack_into('<H', data, at + 30, len(extra))
    struct.pack_into('<I', data, at + 42, 0xFFFFFFFF)
    data[at + 46 + name : at + 46 + name] = extra
    end = len(data) - 22
    struct.pack_into('<I', data, end + 12, struct.unpack_from('<I', data, end + 12)[0] + len(extra))
    path.write_bytes(data)
    assert zipfile.ZipFile(path).testzip() is None and is_whole(path)
    assert torch.equal(read(path, mapped=mapped)['w'], torch.arange(6.0))


def array_state(shape, content, kind='f8'):
    """An array as numpy pickles it, with a state of one's own."""

    class Array:
        def __reduce__(self):
            rebuild, arguments, _ = np.zeros(1).__reduce__()
            return rebuild, arguments, (1, shape, np.dtype(kind), False, content)

    return Array()


@pytest.mark.parametrize(
    ('state', 'match'),
    [
        (((LARGE,), b'\0' * 8), 'an array that lies outside its data'),
        (((2**32, 2**32), b''), 'a malformed array|outside its data'),
        (((-1,), b'\0' * 8), 'a malformed array'),
        (((1,), ['x'], 'O'), 'an array of other things than numbers'),
    ],
)
def test_arrays_are_as_large_as_their_content(state, match, tmp_path):
    refused(archive(tmp_path / 'a.pth', pickle.dumps({'x': array_state(*state)}, protocol=2)), match)


def test_a_bomb_is_refused_unread(tmp_path):
    path = archive(
        tmp_path / 'a.pth', pickled({'w': tensor((2, 3), (3, 1))}), [bytes(50_000_000)], zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 100_000
    refused(path, 'a part of it is compressed')
    assert not is_whole(path)


def test_parts_that_overlap_are_refused(tmp_path):
    path = archive(tmp_path / 'a.pth', pickled({'w': tensor((2, 3), (3, 1))}), [bytes(1000)])
    data = path.read_bytes()
    for size in (10**6, 2**31):  # what the directory says of the storage
        at = data.rindex(b'archive/data/0') - 46
        assert data[at : at + 4] == b'PK\1\2'
        changed = bytearray(data)
        changed[at + 20 : at + 28] = struct.pack('<II', size, size)
        path.write_bytes(changed)
        refused(path, 'larger than the file|parts overlap')
        assert not is_whole(path)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / 'fifo.pth')
    (tmp_path / 'zero.pth').symlink_to('/dev/zero')
    (tmp_path / 'folder.pth').mkdir()
    for name, what in {'fifo': 'no regular file', 'zero': 'no regular file', 'folder': 'a folder'}.items():
        refused(tmp_path / f'{name}.pth', f'it is {what}')
        assert not is_whole(tmp_path / f'{name}.pth')


def test_tar_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / 'a.pth', 'w') as file:
        file.addfile(tarfile.TarInfo('../RAN'))
    refused(tmp_path / 'a.pth', 'begins so')


def test_a_header_of_safetensors_is_checked(tmp_path):
    header = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    (tmp_path / 'a.safetensors').write_bytes(struct.pack('<Q', len(header)) + header + bytes(16))
    with pytest.raises(ValueError, match=r'\w'):
        read(tmp_path / 'a.safetensors')
    (tmp_path / 'b.safetensors').write_bytes(struct.pack('<Q', 2**60) + b'{}')
    with pytest.raises(ValueError, match=r'\w'):
        read(tmp_path / 'b.safetensors')


@pytest.mark.parametrize('zipped', [True, False])
def test_what_checkpoints_hold_is_read_and_can_be_written_again(zipped, tmp_path):
    """Tensors of all kinds, views that share numbers, containers, arrays and numbers of numpy."""
    shared = torch.arange(12.0)
    marked = torch.nn.Parameter(torch.ones(3))
    marked.note = 'attributes are left out'
    content = {
        'state_dict': OrderedDict(a=shared[:6].view(2, 3), b=shared[6:], empty=torch.empty(0, 3), one=torch.tensor(2.0),
                                  half=torch.ones(2, dtype=torch.bfloat16), t=torch.arange(6).view(2, 3).t()),
        'parameter': torch.nn.Parameter(torch.ones(2)),
        'numpy': [np.arange(6.0).reshape(2, 3), np.float64(2.5), np.int64(3), np.zeros(0), np.eye(3).T],
        'rest': dict(t=(1, 2.5, None, 'x', b'y', {1, 2}, frozenset({3}), slice(1, 2)), c=Counter('aab')),
        'size': torch.Size([2]),
        'dtype': torch.float16,
        'marked': marked,
    }  # fmt: skip
    for name in ('a.pth', 'b.pth'):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        found = read(tmp_path / name)
        for key, value in found['state_dict'].items():
            assert torch.equal(value, content['state_dict'][key]), key
            assert value.dtype == content['state_dict'][key].dtype
        assert torch.equal(found['parameter'], torch.ones(2)) and isinstance(found['parameter'], torch.nn.Parameter)
        for value, expected in zip(found['numpy'], content['numpy'], strict=True):
            np.testing.assert_array_equal(value, expected)
        assert torch.equal(found['marked'], marked) and not hasattr(found['marked'], 'note')
        assert found['rest'] == content['rest'] and found['dtype'] is torch.float16
        content = found


LOAD = """
import resource, sys
from pathlib import Path
import torch, dat_mm.untrusted as untrusted
try:
    import mmengine.logging
except ImportError:
    pass
lines = Path('/proc/self/status').read_text().splitlines()
now = int(next(line for line in lines if 'VmSize' in line).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), now + (2 << 30)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        untrusted.read(path)
        print('read', path)
    except (untrusted.Refused, ValueError):
        pass
print('grown by', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='the size of a process is read from /proc')
def test_memory_stays_bounded(tmp_path):
    """All files of absurd sizes, read by one process that may not take two gigabytes more."""
    paths = [archive(tmp_path / f'{n}.pth', pickled({'w': content})) for n, content in enumerate(ABSURD.values())]
    paths.append(archive(tmp_path / 'bomb.pth', b'N.', [bytes(300_000_000)], zipfile.ZIP_DEFLATED))
    nested = b']' * 200_000 + b'a' * 199_999 + b'.'
    paths.append(archive(tmp_path / 'nested.pth', nested))
    paths += [archive(tmp_path / f'grows{n}.pth', code) for n, (code, _) in enumerate(GROWS.values())]
    done = subprocess.run([sys.executable, '-c', LOAD, *map(str, paths)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    assert int(done.stdout.split()[-1]) < 600_000  # kilobytes: an allowance, and what Python keeps of the one before
    assert 'read' not in done.stdout
