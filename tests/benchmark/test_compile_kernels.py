# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""tools/compile_kernels.py finds the longest loop of a listing, and prints a row for each kernel."""

import json

import pytest

from dat_mm.benchmark import compile_kernels

pytestmark = pytest.mark.one_stack

LISTING = """
.L_x_0:
        /*0000*/                   LDG.E.64 R2, [R4] ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   MUFU.EX2 R1, R2 ;
        /*0030*/                   FADD R1, R2, R3 ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/                   BRA `(.L_x_2) ;
        /*0060*/                   FMUL R1, R2, R3 ;
.L_x_2:
        /*0070*/                   EXIT ;
"""


def test_the_longest_loop_of_a_listing():
    """A branch forwards is no loop, though more instructions are behind it."""
    assert compile_kernels.longest_loop(LISTING) == ['MUFU', 'FADD', 'BRA']


def test_rows_of_kernels(monkeypatch, capsys):
    """There is one for each, in a table or as JSON."""
    asked = []

    def compiled(cases, capability):
        asked.append((list(cases), capability))
        yield from (('sampling forward, bfloat16, 32', 'first'), ('packing pack, dat, bfloat16, 32', 'second'))

    usage = {
        'first': dict(threads=128, registers=180, spilled=0, shared=16),
        'second': dict(threads=64, registers=9, spilled=8, shared=0),
    }
    monkeypatch.setattr(compile_kernels, 'compiled_kernels', compiled)
    monkeypatch.setattr(compile_kernels, 'usage', usage.get)
    monkeypatch.setattr(compile_kernels, 'read', lambda *_: LISTING)
    options = dict(dtypes=['bfloat16'], widths=[32, 64], conventions=['dat'], capability=80)
    compile_kernels.compile_kernels(**options)
    table = capsys.readouterr().out.splitlines()
    assert table[2:] == [
        '| sampling forward, bfloat16, 32 | 128 | 180 | 0 | 16 | 3 | 1 |',
        '| packing pack, dat, bfloat16, 32 | 64 | 9 | 8 | 0 | 3 | 1 |',
    ]
    assert asked == [([('bfloat16', 32, 'dat'), ('bfloat16', 64, 'dat')], 80)]
    compile_kernels.compile_kernels(**options, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert rows['packing pack, dat, bfloat16, 32'] == usage['second'] | {'loop': 3, 'slow': 1}
