# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Reads checkpoints that were changed at random, in a process of its own: a crash of the interpreter is seen outside.

python fuzz_checkpoints.py FOLDER FIRST COUNT prints a line for each file; `ran` in it means that code was run.
"""

import random
import sys
from pathlib import Path

import numpy as np
import torch

from dat_mm.commands.infer import open_loadable
from dat_mm.engine.checkpoints import open_checkpoint, read_meta
from dat_mm.errors import UserError
from dat_mm.untrusted import Refused, is_whole
from dat_mm.weights import read_state_dict

READERS = (open_checkpoint, read_meta, is_whole, read_state_dict)
EVENTS = ('exec', 'pickle.find_class', 'os.system', 'os.exec', 'os.fork', 'subprocess.Popen', 'socket.connect')
EVENTS += ('os.remove', 'shutil.rmtree')
OPCODES = b'(.0123BCFIJKLMNPQRSTUVXbcdeghijlopqrstuq\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8e\x93'


def bases(folder: Path) -> list[Path]:
    """Writes the files that are changed: a training's, weights, the older format, safetensors."""
    from mmengine.logging import HistoryBuffer
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = {f'backbone.{n}.weight': torch.randn(4, 3) for n in range(8)} | {'head.bias': torch.zeros(4)}
    log = HistoryBuffer()
    for n in range(5):
        log.update(0.5 * n)
    parameters = [torch.nn.Parameter(value) for value in state.values()]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    training = dict(
        meta=dict(iter=3, epoch=1, seed=0, cfg='x = 1', time='now'),
        state_dict=state,
        optimizer=optimizer.state_dict(),
        message_hub=dict(log_scalars={'train/loss': log}, runtime_info={'iter': 3, 'loss': np.float64(1.5)}),
        param_schedulers=[dict(last_step=3, base_values=[0.1])],
    )
    torch.save(training, folder / 'training.pth')
    torch.save({'model': state}, folder / 'weights.pth')
    torch.save({'state_dict': state}, folder / 'legacy.pth', _use_new_zipfile_serialization=False)
    save_file(state, folder / 'weights.safetensors')
    return [folder / name for name in ('training.pth', 'weights.pth', 'legacy.pth', 'weights.safetensors')]


def changed(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One of many changes: bytes, opcodes, cuts, parts twice or of another file, numbers that are too large."""
    data = bytearray(data)
    kind = rng.randrange(9)
    spots = [rng.randrange(len(data)) for _ in range(rng.choice((1, 1, 3, 20)))]
    if kind == 0:
        for at in spots:
            data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:  # within the pickle, which lies at the beginning
        for at in spots:
            data[min(at % 4000, len(data) - 1)] = rng.choice(OPCODES)
    elif kind == 2:
        del data[spots[0] :]
    elif kind == 3:
        del data[spots[0] : spots[0] + rng.randrange(1, 200)]
    elif kind == 4:
        start = rng.randrange(len(other))
        data[spots[0] : spots[0] + 50] = other[start : start + rng.randrange(1, 300)]
    elif kind == 5:
        for at in spots:
            data[at : at + 4] = rng.choice((b'\xff\xff\xff\x7f', b'\xff\xff\xff\xff', b'\0\0\0\0', b'\0\0\0\x80'))
    elif kind == 6:
        data[spots[0] : spots[0]] = data[: rng.randrange(1, 300)]
    elif kind == 7:  # within the directory of a zip file, which lies at the end
        for at in spots:
            data[-1 - at % min(1500, len(data))] = rng.choice((0, 1, 8, 0x7F, 0xFF))
    else:  # parts of the pickle in another order
        start, length = spots[0] % 2000, rng.randrange(1, 60)
        moved = data[start : start + length]
        del data[start : start + length]
        at = rng.randrange(min(2000, len(data) + 1))
        data[at:at] = moved
    return bytes(data)


def main(folder: Path, first: int, count: int) -> None:
    watching, happened = [False], []

    def audit(event, arguments):
        writes = event == 'open' and isinstance(arguments[1], str) and 'w' in arguments[1]
        if watching[0] and (writes or event in EVENTS):
            happened.append(f'{event} {arguments[:2]}')

    files = bases(folder)
    contents = [path.read_bytes() for path in files]
    for path in files:  # whatever is imported for it is imported now
        open_loadable(path, folder)
    path_of = {path: folder / f'changed{path.suffix}' for path in files}
    sys.addaudithook(audit)
    for seed in range(first, first + count):
        rng = random.Random(seed)
        n = rng.randrange(len(files))
        path = path_of[files[n]]
        path.write_bytes(changed(contents[n], rng.choice(contents), rng))
        print(seed, files[n].name, end=' ', flush=True)  # before: a crash leaves it as the last line
        told = []
        for reader in (*READERS, lambda path: open_loadable(path, folder)):
            watching[0] = reader in READERS  # the last one may write the converted file
            try:
                reader(path)
                told.append('read')
            except (UserError, Refused, ValueError, FileNotFoundError) as error:
                assert '\n' not in str(error), str(error)
                told.append('refused')
            finally:
                watching[0] = False
        print(*told, *(f'ran {event}' for event in happened), flush=True)
        happened.clear()


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
