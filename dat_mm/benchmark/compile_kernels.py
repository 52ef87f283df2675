# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/compile_kernels.py does: the registers, the memory and the longest loop of each compiled kernel."""

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

SLOW = {'MUFU', 'FRND', 'F2I', 'I2F', 'F2F'}  # exponentials and conversions: eight times as long as the others
MODULES = ('packing', 'deformable', 'neighborhood', 'sampling')
LAUNCHES = []  # (name, kernel, arguments, options) of those recorded


class Recorded:
    """Stands for a kernel: its launch is written down and does not take place."""

    def __init__(self, name, kernel):
        self.name, self.kernel = name, kernel

    def __getitem__(self, grid):
        return lambda *args, **options: LAUNCHES.append((self.name, self.kernel, args, options))


def record(dtype: str, width: int, convention: str) -> list:
    """Collects (name, kernel, arguments, options) of each launch of the ops, forward and backward.

    No kernel runs: each is replaced by one that writes its launch down.
    """
    import torch

    from dat_mm.ops.fused import deformable, neighborhood, sampling

    LAUNCHES.clear()
    for module in MODULES:
        kernels = import_module(f'dat_mm.ops.fused.{module}_kernels')
        for name, kernel in vars(kernels).copy().items():
            if getattr(kernel, 'do_not_specialize', None):
                setattr(kernels, name, Recorded(f'{module} {name}', kernel))

    dtype = getattr(torch, dtype)
    trained = 28 if convention == 'datpp' else 14
    q = torch.zeros(1, 28, 28, 4, width, dtype=dtype).permute(0, 3, 1, 2, 4)
    keys = q.flatten(2, 3)
    points, log_sum = torch.zeros(1, 2, 28, 28, 2), torch.zeros(1, 4, 28, 28)
    case = q, keys, keys, points.flatten(2, 3), torch.zeros(4, 2 * trained - 1, 2 * trained - 1)
    deformable.forward(*case, convention, 1.0)
    deformable.backward(q, *case, q, log_sum, convention, 1.0)
    table = torch.zeros(4, 13, 13)
    neighborhood.forward(q, q, q, table, 7, 1.0)
    neighborhood.backward(q, q, q, q, table, q, log_sum, 7, 1.0)
    x = torch.zeros(1, 28, 28, 256, dtype=dtype)
    sampling.backward(sampling.forward(x, points), x, points)
    return list({name: (name, *launch) for name, *launch in LAUNCHES}.values())


def form_of(kernel, args, options) -> tuple[dict, dict, dict, dict]:
    """What a kernel is compiled for: types and attributes of its arguments, constants, and how it is launched."""
    import torch

    kinds = {'float32': 'fp32', 'float16': 'fp16', 'bfloat16': 'bf16', 'int64': 'i64', 'int32': 'i32'}
    names, signature, attributes = kernel.arg_names, {}, {}
    for i, (name, x) in enumerate(zip(names, args, strict=False)):
        if torch.is_tensor(x):
            signature[name] = '*' + kinds[str(x.dtype).removeprefix('torch.')]
        else:
            signature[name] = 'i32' if isinstance(x, int) else 'fp32'
        free = name in kernel.do_not_specialize
        if torch.is_tensor(x) or (isinstance(x, int) and x % 16 == 0 and not free):
            attributes[(i,)] = [['tt.divisibility', 16]]
    how = {name: options[name] for name in ('num_warps', 'num_stages') if name in options}
    constants = {name: x for name, x in options.items() if name not in how}
    signature |= dict.fromkeys(constants, 'constexpr')
    constants = {(names.index(name),): x for name, x in constants.items()}
    return signature, attributes, constants, how


def compile_launch(kernel, args, options, capability: int):
    """Compiles a kernel as triton would at its first launch with these arguments."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes, constants, how = form_of(kernel, args, options)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget('cuda', capability, 32), options=how)


def longest_loop(listing: str) -> list[str]:
    """Finds the longest run of instructions from a label to a branch back to it."""
    labels, code, loops = {}, [], [[]]
    for line in listing.splitlines():
        if label := re.match(r'\s*(\.L_x_\d+):', line):
            labels[label[1]] = len(code)
        elif instruction := re.search(r'/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_]+)(.*?);', line):
            code.append(instruction[1])
            target = re.search(r'`\((\.L_x_\d+)\)', instruction[2])
            if instruction[1] == 'BRA' and target and target[1] in labels:
                loops.append(code[labels[target[1]] :])
    return max(loops, key=len)


def read(compiled, tool: str, option: str) -> str:
    """What a tool that comes with triton prints of a compiled kernel."""
    import triton

    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / tool
    with TemporaryDirectory() as folder:
        path = Path(folder, 'kernel.cubin')
        path.write_bytes(compiled.asm['cubin'])
        return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


def usage(compiled) -> dict:
    """The registers and the memory of a compiled kernel."""
    registers, stack = re.search(r'REG:(\d+) STACK:(\d+)', read(compiled, 'cuobjdump', '-res-usage')).groups()
    return dict(
        threads=compiled.metadata.num_warps * 32,
        registers=int(registers),
        spilled=int(stack),
        shared=compiled.metadata.shared,
    )


def length_of_loop(compiled) -> dict:
    """The instructions of the longest loop, which takes longer to read than a kernel to compile."""
    loop = Counter(longest_loop(read(compiled, 'nvdisasm', '-c')))
    return dict(loop=sum(loop.values()), slow=sum(n for name, n in loop.items() if name in SLOW))


def compiled_kernels(cases, capability: int):
    """Compiles each kernel for each (dtype, width, convention), and yields (name, compiled): each of them once."""
    seen = []
    for dtype, width, convention in cases:
        for name, kernel, values, options in record(dtype, width, convention):
            form = name, form_of(kernel, values, options)
            if form not in seen:
                seen.append(form)
                of = f'{name}, {convention}' if name.startswith(('packing', 'deformable')) else name
                yield f'{of}, {dtype}, {width}', compile_launch(kernel, values, options, capability)


def compile_kernels(*, dtypes, widths, conventions, capability, as_json=False) -> None:
    """Compiles each kernel for each dtype, width of a head and convention, and prints a row for each.

    `capability` is that of the GPU, 90 for 9.0.
    """
    cases = itertools.product(dtypes, widths, conventions)
    rows = {name: usage(of) | length_of_loop(of) for name, of in compiled_kernels(cases, capability)}
    if as_json:
        json.dump(rows, sys.stdout)
        return
    head = ('kernel', 'threads', 'registers', 'spilled, bytes', 'shared, bytes', 'longest loop', 'slow ones')
    print(f'| {" | ".join(head)} |\n|---|{"---:|" * 6}')
    for name, row in rows.items():
        print(f'| {name} | {" | ".join(str(n) for n in row.values())} |')
