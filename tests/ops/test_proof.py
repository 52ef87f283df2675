# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""'auto' takes a kernel only where a trial on this machine says that it is right and fast.

Triton interprets the kernels here, and the tests let 'auto' take them on a CPU. They are broken on purpose.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip('triton')

from op_cases import deformable_case, neighborhood_case, outputs, sampling_case

from dat_mm.ops import backends, deformable_attention, fused, neighborhood_attention, proof, sample_features

OPS = {
    'deformable_attention': (backends.DEFORMABLE, deformable_attention, (deformable_case, 6, 7, (4, 4), 5)),
    'neighborhood_attention': (backends.NEIGHBORHOOD, neighborhood_attention, (neighborhood_case, 7, 8, 7)),
    'sample_features': (backends.SAMPLING, sample_features, (sampling_case, 6, 7, 3, 4)),
}
pytestmark = [
    pytest.mark.one_stack,
    pytest.mark.skipif(not fused.interprets(), reason='the kernels are not interpreted'),
]


@pytest.fixture(autouse=True)
def kernels_for_all(monkeypatch, tmp_path):
    """'auto' takes the kernels on a CPU, and knows of no trial."""
    monkeypatch.setenv('DAT_MM_CACHE', str(tmp_path))
    proof._ANSWERS.clear()
    for table, _, _ in OPS.values():
        monkeypatch.setitem(table, 'triton', table['triton']._replace(is_faster=lambda **call: True))
    yield
    proof._ANSWERS.clear()


def case_of(op, dtype=torch.float32):
    (make, *sizes) = OPS[op][2]
    return make(dtype, *sizes)


def replace(monkeypatch, op, change):
    """Has the kernel of an op give something else, and counts its runs."""
    table, runs = OPS[op][0], []
    run = table['triton'].run

    def changed(*args, **options):
        runs.append(1)
        return change(run(*args, **options))

    monkeypatch.setitem(table, 'triton', table['triton']._replace(run=changed))
    return runs


def plain(op, case):
    """What 'auto' gives where there is no kernel."""
    table, function, _ = OPS[op]
    kernel = table.pop('triton')
    try:
        return outputs(function, case)
    finally:
        others = dict(table)
        table.clear()
        table.update({'triton': kernel, **others})


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def stop(*_):
    raise RuntimeError('PassManager::run failed\nmore lines')


@pytest.mark.parametrize('op', OPS)
def test_a_kernel_that_is_right_is_taken_and_the_verdict_is_kept(op, monkeypatch, tmp_path):
    runs = replace(monkeypatch, op, lambda out: out)
    case = case_of(op)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        outputs(OPS[op][1], case)
    assert len(runs) == 3  # the trial, and the two of the call
    (file,) = (tmp_path / 'kernels').glob('*.json')
    kept = json.loads(file.read_text())
    assert (kept['op'], kept['answer'], kept['dtype'], kept['name']) == (op, '', 'float32', 'cpu')

    proof._ANSWERS.clear()  # as in another process
    outputs(OPS[op][1], case)
    assert len(runs) == 5
    assert not list((tmp_path / 'kernels').glob('*.lock'))


@pytest.mark.parametrize('op', OPS)
@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (lambda out: out * 1.01, r'the output differs by 0\.01 of the largest value, more than 0\.0002'),
        (lambda out: out * float('nan'), 'the output is not finite'),
        (stop, r'it does not run \(RuntimeError: PassManager::run failed\)'),
        (lambda out: out + (out - out.detach()), 'the gradient of [qx] differs by'),
    ],
    ids=['wrong', 'nan', 'error', 'gradient'],
)
def test_a_broken_kernel_is_not_taken(op, change, told, monkeypatch):
    """It is named once, and the plain backend runs."""
    case = case_of(op)
    expected = plain(op, case)
    replace(monkeypatch, op, change)
    line = rf"'auto' does not take the kernel 'triton' of {op} for float32, width \d+, on cpu: {told}"
    with pytest.warns(UserWarning, match=line) as told_once:
        same(outputs(OPS[op][1], case), expected)
        same(outputs(OPS[op][1], case), expected)
    assert len(told_once) == 1
    assert 'python -m dat_mm.doctor' in str(told_once[0].message)


def test_a_kernel_that_is_named_runs_as_it_is(monkeypatch):
    replace(monkeypatch, 'sample_features', lambda out: out * 2)
    case = case_of('sample_features')
    right = sample_features(**case, backend='reference')
    assert torch.allclose(sample_features(**case, backend='triton'), 2 * right, atol=1e-4)


def test_trials_can_be_switched_off(monkeypatch, tmp_path):
    monkeypatch.setattr(proof, 'ENABLED', False)
    replace(monkeypatch, 'sample_features', lambda out: out * 2)
    case = case_of('sample_features')
    assert torch.allclose(sample_features(**case), 2 * sample_features(**case, backend='reference'), atol=1e-4)
    assert not list(tmp_path.iterdir())


def test_each_dtype_and_convention_has_a_verdict_of_its_own(monkeypatch):
    """What one is told of another kernel says nothing of this one."""
    asked = []
    monkeypatch.setattr(proof, '_why_wrong', lambda question, *_: asked.append(question) or '')
    for dtype in (torch.float32, torch.float16):
        for convention in ('dat', 'datpp', 'dat'):
            deformable_attention(**case_of('deformable_attention', dtype), convention=convention)
    assert [(question.dtype, question.how) for question in asked] == [
        (dtype, (convention, True)) for dtype in ('float32', 'float16') for convention in ('dat', 'datpp')
    ]


def test_a_slow_kernel_is_not_taken_at_that_size(monkeypatch):
    """Small calls are timed apart from large ones, and inference apart from training."""
    table, op, _ = OPS['deformable_attention']
    sizes = []

    def seconds(run):
        sizes.append(1)
        return 0.002 if len(sizes) == 1 else 0.001  # the first kernel alone is slow

    def holds(question, size, training):  # as on a GPU
        return proof._is_right(*question) and proof._is_fast(question, *proof._cut(question, size), training)

    monkeypatch.setattr(proof, '_seconds', seconds)
    monkeypatch.setattr(proof, 'holds', holds)
    runs = replace(monkeypatch, 'deformable_attention', lambda out: out)
    small, large = (deformable_case(torch.float32, n, n, (4, 4), 5) for n in (4, 9))
    with torch.no_grad(), pytest.warns(UserWarning, match='slower at 1x4x4x4x2x5x7x7: triton 2 ms, .* 1 ms') as told:
        for case in (small, small):
            op(**case)
        assert len(runs) == 1 and len(sizes) == 2  # the trial alone
        op(**large)
        assert len(runs) == 2 and len(sizes) == 4
    assert len(told) == 1
    op(**small)
    assert len(runs) == 3 and len(sizes) == 6


def test_what_is_timed_is_cut():
    """Of a batch of 128 large maps, some rows of one are timed."""
    question = proof.Question('deformable_attention', 'triton', 'cpu', 'float32', 32, ('dat', True))
    size, magnitude = proof._cut(question, (128, 200, 320, 12, 3, 4000, 27, 27))
    assert (
        size[0] == 1 and 0 < size[1] < 200 and magnitude == proof._cut(question, (64, 200, 320, 12, 3, 4000, 27, 27))[1]
    )
    assert proof._cut(question, (1, 7, 7, 12, 3, 49, 27, 27))[0] == (1, 7, 7, 12, 3, 49, 27, 27)


def test_the_callers_modes_do_not_reach_a_trial(monkeypatch):
    case = {name: x.detach() for name, x in case_of('deformable_attention').items()}
    state = torch.get_rng_state()
    with warnings.catch_warnings(), torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        warnings.simplefilter('error')
        deformable_attention(**case)
    assert torch.equal(state, torch.get_rng_state())


def test_a_graph_that_is_captured_holds_no_trial(monkeypatch, tmp_path):
    """It has the plain backend, and the next call outside of it tries the kernel."""
    monkeypatch.setattr(proof, '_is_capturing', lambda device: True)
    runs = replace(monkeypatch, 'sample_features', lambda out: out)
    sample_features(**case_of('sample_features'))
    assert not runs and not list(tmp_path.iterdir())
    monkeypatch.undo()


def test_a_place_that_cannot_be_written_does_no_harm(monkeypatch, tmp_path):
    file = tmp_path / 'file'
    file.touch()
    monkeypatch.setenv('DAT_MM_CACHE', str(file))
    runs = replace(monkeypatch, 'sample_features', lambda out: out)
    for _ in range(2):
        sample_features(**case_of('sample_features'))
    assert len(runs) == 3


def test_what_a_killed_process_left_does_no_harm(monkeypatch, tmp_path):
    """A lock that is old is taken away, and a verdict that is no verdict is found again."""
    sample_features(**case_of('sample_features'))
    (file,) = (tmp_path / 'kernels').glob('*.json')
    lock = file.with_suffix('.lock')
    for damaged in ('', '[]', '{"answer": 3}'):
        proof._ANSWERS.clear()
        file.write_text(damaged)
        lock.touch()
        os.utime(lock, (time.time() - 1000,) * 2)
        sample_features(**case_of('sample_features'))
        assert json.loads(file.read_text())['answer'] == ''
        assert not lock.exists()


TRY = """
import sys, torch, warnings
warnings.simplefilter('ignore')
from dat_mm.ops import backends, proof, sample_features
entry = backends.SAMPLING['triton']
backends.SAMPLING['triton'] = entry._replace(is_faster=lambda **call: True)
find = proof._why_wrong
proof._why_wrong = lambda *question: print('tried') or find(*question) or 'for this test'
sys.stdin.read(1)  # all begin at once
sample_features(torch.ones(1, 3, 3, 2), torch.zeros(1, 1, 2, 2, 2))
"""


def test_processes_that_ask_at_once_get_one_answer(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, 'PYTHONPATH': str(root), 'DAT_MM_CACHE': str(tmp_path), 'OMP_NUM_THREADS': '1'}
    started = [
        subprocess.Popen([sys.executable, '-c', TRY], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in started:
        process.stdin.write(b'x')
        process.stdin.flush()
    told = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert b''.join(told).split() == [b'tried']


@pytest.mark.slow
@pytest.mark.parametrize('op', OPS)
def test_a_compiled_graph_has_what_the_trial_says(op, monkeypatch):
    """The trial runs while the graph is made, which is one graph; a broken kernel is not in it."""
    case = {name: x.detach() for name, x in case_of(op).items()}
    expected = OPS[op][1](**case, backend='reference')
    for factor, taken in ((1.0, True), (1.01, False)):
        torch.compiler.reset()
        proof._ANSWERS.clear()
        monkeypatch.setenv('DAT_MM_CACHE', f'{os.environ["DAT_MM_CACHE"]}/{taken}')
        replace(monkeypatch, op, lambda out, factor=factor: out * factor)
        graphs = []

        def keep(graph, inputs, graphs=graphs):
            graphs.append(graph.print_readable(print_output=False))
            return graph

        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found = torch.compile(OPS[op][1], backend=keep, fullgraph=True)(**case)
        assert torch.allclose(found, expected, atol=1e-4)
        assert ('triton' in ''.join(graphs)) == taken
