# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The benchmark: what it computes from times, on made-up ones, and that its cases run. Nothing asks how fast."""

import importlib.util
import json
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from runs import run_alone

from dat_mm.benchmark import benchmark as bench
from dat_mm.benchmark import run, tables
from dat_mm.benchmark.cases import OP, Case
from dat_mm.benchmark.exported import Outputs
from dat_mm.benchmark.run import Result
from dat_mm.benchmark.subject import PRODUCTS, Subject, build
from dat_mm.benchmark.suites import SUITES, Target

pytestmark = pytest.mark.one_stack

spec = importlib.util.spec_from_file_location('tool_benchmark', Path(__file__).parents[2] / 'tools' / 'benchmark.py')
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

OURS, OTHER = Case('dat-nano'), Case('dat-nano', backend='reference')


def made_up(case, seconds, memory=2**20, logits=0, error=None):
    return Result(case, seconds, peak=2 * memory, memory=memory, logits=logits, error=error)


def test_ratios_are_of_the_same_round():
    """A machine that is ten times slower in one round changes nothing."""
    ours, other = made_up(OURS, [1, 10, 1]), made_up(OTHER, [4, 40, 4.2])
    assert tables.ratio(other, ours) == 4


@pytest.mark.parametrize(
    ('measure', 'bound', 'measured', 'met'),
    [('speed', 4, 4, True), ('speed', 5, 4, False), ('time', 0.3, 0.25, True), ('memory', 0.2, 0.25, False)],
)
def test_targets(measure, bound, measured, met):
    results = {OURS: made_up(OURS, [1, 1]), OTHER: made_up(OTHER, [4, 4], memory=2**22)}
    judged = tables.judge(Target('title', measure, bound, (OURS, OTHER)), results)
    assert (judged['measured'], judged['met']) == (measured, met)
    assert ('**missed**' in tables.target_table([judged])) != met


def test_what_failed_is_not_measured():
    results = {OURS: made_up(OURS, [1]), OTHER: made_up(OTHER, [], error='RuntimeError: a | b')}
    judged = tables.judge(Target('title', 'speed', 1, (OURS, OTHER)), results)
    assert judged['measured'] is None and 'not measured' in tables.target_table([judged])
    assert 'failed: RuntimeError: a / b' in tables.case_table(list(results.values()))


def test_launches_are_put_together(monkeypatch):
    launched = [
        [Result(Case('dat-nano'), [1.0, 2.0], peak=5, memory=3, logits=7, products=[0.5])],
        [Result(Case('dat-nano'), [3.0, 4.0], peak=4, memory=2, logits=7, products=[0.6])],
        [Result(Case('dat-nano'), [5.0], error='gone')],
    ]
    monkeypatch.setattr(run, 'launch', lambda cases, rounds, threads: launched.pop(0))
    (result,) = run.run_group([Case('dat-nano')], rounds=2, launches=2)
    assert result == Result(Case('dat-nano'), [1.0, 2.0, 3.0, 4.0], peak=5, memory=3, logits=7, products=[0.5, 0.6])
    assert run.run_group([Case('dat-nano')], rounds=2)[0].error == 'gone'


def test_one_process_at_a_time_exports_a_model(monkeypatch):
    """Those of one model share a file. Two that wrote it at once took it from each other."""
    events = []

    class Recorded:
        def __init__(self, case, threads):
            self.result = Result(case)
            events.append(f'start {case.runtime}')

        def receive(self):
            events.append(f'ready {self.result.case.runtime}')

        def time(self):
            return 1.0

        def stop(self):
            pass

    monkeypatch.setattr(run, 'Worker', Recorded)
    run.launch([replace(OURS, runtime=name) for name in ('torch', 'onnxruntime', 'openvino')], 0, None)
    runtimes = [f'{what} {name}' for name in ('onnxruntime', 'openvino') for what in ('start', 'ready')]
    assert events == ['start torch', *runtimes, 'ready torch']


def test_growth(tmp_path):
    results = [made_up(replace(OURS, size=(n, n)), [n**3 / 1e6], memory=n * n, logits=n**4) for n in (64, 128, 256)]
    cases = tuple(result.case for result in results)
    for measure, expected in (('time over logits', 0.75), ('memory over logits', 0.5), ('memory over pixels', 1)):
        judged = tables.judge(Target('', measure, 1.1, cases), {r.case: r for r in results})
        assert judged['measured'] == pytest.approx(expected)
    assert tables.draw(results, tmp_path / 'growth.png') and (tmp_path / 'growth.png').stat().st_size
    assert not tables.draw(results[:1], tmp_path / 'none.png')


def test_rates_of_the_op():
    """One TFLOP of products in a second, forward; three and a half times as much with the backward."""
    logits = 10**12 // (4 * tables.OP_WIDTH)
    forward, both = (made_up(Case(OP, mode=mode), [1.0], logits=logits) for mode in ('inference', 'backward'))
    lines = tables.op_rates([forward, both, made_up(OURS, [1.0])], {'product_tflops': 10.0})
    assert len(lines) == 2 and '1 TFLOP/s, 10.0% of' in lines[0] and '3.5 TFLOP/s, 35.0% of' in lines[1]
    assert not tables.op_rates([forward], {})


def test_without_mmpretrain_its_models_are_left_out(monkeypatch):
    monkeypatch.setattr(bench, 'find_spec', lambda name: None)
    for group in bench.choose_groups('gpu', None, {}):
        assert group.cases and not any('mmpretrain' in case.model for case in group.cases)


@pytest.mark.slow
def test_a_compiled_case_runs():
    case = Case(OP, (3, 4), backend='reference', compiled=True)
    assert case.name == 'deformable-attention (reference, compiled)'
    assert Subject(case).time(1)['seconds'] > 0


@pytest.mark.parametrize('suite', SUITES)
def test_targets_are_of_cases_that_run(suite):
    for group in SUITES[suite]():
        assert len(set(group.cases)) == len(group.cases)
        for target in group.targets:
            assert target.measure in tables.MEASURES and set(target.cases) <= set(group.cases)


@pytest.mark.parametrize('mode', ['inference', 'backward', 'training'])
@pytest.mark.parametrize(
    'case',
    [
        Case('dat-nano', (64, 96), dtype='amp'),
        Case('datpp-nano', (64, 64), batch=2, dtype='bfloat16', task='classify', backend='reference'),
        Case(OP, (3, 4), dtype='bfloat16'),
    ],
    ids=lambda case: case.model,
)
def test_every_kind_of_case_runs(case, mode):
    answer = Subject(replace(case, mode=mode)).time(2)
    assert answer['seconds'] > 0 and answer['peak'] >= answer['memory'] >= 0 and answer['logits'] > 0


@pytest.mark.parametrize(
    ('key', 'counts'),
    [
        *((f'aten::{name}', True) for name in ('mm', 'addmm', 'bmm', 'baddbmm_', 'addmm_', 'mkldnn_convolution')),
        *(
            (name, True)
            for name in ('aten::convolution_backward', 'aten::_addmm_activation', 'mkldnn::_linear_pointwise')
        ),
        *((f'aten::{name}', False) for name in ('mul', 'add', 'copy_', 'native_layer_norm', 'addcmul_', 'embedding')),
    ],
)
def test_what_counts_as_a_product(key, counts):
    assert bool(PRODUCTS.fullmatch(key)) == counts


@pytest.mark.parametrize('mode', ['inference', 'training'])
def test_products_are_a_part_of_a_step(mode):
    """Both are of one step, and its products cannot take longer than all of it under the profiler."""
    subject = Subject(Case('datpp-nano', (64, 64), mode=mode, task='classify'), 1)
    subject.step()
    start = time.perf_counter()
    (seconds,) = subject.products()['products']
    assert 0 < seconds < time.perf_counter() - start


def test_a_group_tells_the_products_of_its_steps():
    case = Case('dat-nano', (32, 32))
    (result,) = run.run_group([case], rounds=1, launches=2, threads=1)
    assert len(result.products) == 2 and all(result.products)
    assert re.search(r'\| [\d.]+ ms \| \d+ MB', tables.case_table([result]).splitlines()[-1])
    assert not replace(case, device='cuda').profiled and not replace(case, runtime='openvino').profiled


def test_logits_by_hand():
    """dat-nano at 64: 8 heads at 4x4 and 12 at 2x2, a key for each query."""
    assert Subject(Case('dat-nano', (64, 64), batch=2)).logits == 2 * (8 * 16**2 + 12 * 4**2)


def test_tool(tmp_path):
    tool.main(['--archs', 'dat-nano', '--sizes', '32', '64x32', '--quick', '--threads', '1', '--out', str(tmp_path)])
    data = json.loads((tmp_path / 'benchmark.json').read_text())
    assert [len(group['results']) for group in data['groups']] == [1, 1]
    assert data['groups'][0]['results'][0]['median'] > 0 and data['machine']['torch']
    assert '`dat-nano`' in (tmp_path / 'benchmark.md').read_text()
    assert (tmp_path / 'benchmark-growth.png').exists()


def test_a_model_that_takes_one_size_has_its_outputs_named_at_that_size():
    """As timm's Swin is. It was run at another size, and could not be exported at all."""
    pytest.importorskip('timm')
    network = Outputs(build(Case('timm/swin_tiny_patch4_window7_224', (64, 96), backend=None)), (64, 96))
    assert network.outputs == ('0', '1', '2', '3')


@pytest.mark.slow
def test_exported_models_are_timed_beside_pytorch(tmp_path):
    pytest.importorskip('onnxscript')
    arguments = ['--archs', 'dat-nano', '--sizes', '64', '--runtimes', 'torch', 'onnxruntime', 'openvino']
    tool.main([*arguments, '--quick', '--threads', '1', '--out', str(tmp_path)])
    (group,) = json.loads((tmp_path / 'benchmark.json').read_text())['groups']
    assert [result['case']['runtime'] for result in group['results']] == ['torch', 'onnxruntime', 'openvino']
    assert all(result['median'] > 0 and not result['error'] for result in group['results'])
    assert '`dat-nano (openvino)`' in (tmp_path / 'benchmark.md').read_text()


def test_what_was_measured_is_kept_when_the_next_group_does_not_end(monkeypatch, tmp_path):
    def measure(cases, **options):
        if cases[0].size == (64, 64):
            raise KeyboardInterrupt
        return [made_up(case, [1.0]) for case in cases]

    monkeypatch.setattr(bench, 'run_group', measure)
    with pytest.raises(KeyboardInterrupt):
        tool.main(['--archs', 'dat-nano', '--sizes', '32', '64', '--out', str(tmp_path)])
    data = json.loads((tmp_path / 'benchmark.json').read_text())
    assert [group['results'][0]['median'] for group in data['groups']] == [1.0]


@pytest.mark.slow
def test_the_check_of_a_gpu_is_rehearsed_without_one(tmp_path):
    """All stages run, write what they found, and a stage that fails does not take the others along."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, 'DEVICE': 'cpu', 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    environment.pop('TRITON_INTERPRET', None)  # the tests of the check set it themselves
    done = run_alone(['bash', root / 'tools/check_gpu.sh', tmp_path], env=environment)
    assert done.returncode == 0, done.stdout[-2000:]
    assert {path.name for path in tmp_path.iterdir()} >= {
        *(f'check-{stage}.log' for stage in ('imports', 'doctor', 'tests', 'benchmark')),
        *('check-doctor.json', 'benchmark.json'),
    }
    limits = [int(text) for text in re.findall(r'(\d+) s at most', done.stdout)]
    assert len(limits) == 4 and sum(limits) <= 450

    (tmp_path / 'python').write_text(
        '#!/bin/sh\ncase "$*" in *tools/doctor*|-m\\ pytest*) exit 3;; esac\necho ran "$@"\n'
    )
    (tmp_path / 'python').chmod(0o755)
    environment['PYTHON'] = str(tmp_path / 'python')
    done = run_alone(['bash', root / 'tools/check_gpu.sh', tmp_path / 'broken'], env=environment)
    assert done.returncode == 1
    assert 'failed: doctor (3) tests (3)' in done.stdout
    assert 'ran tools/benchmark.py' in (tmp_path / 'broken/check-benchmark.log').read_text()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'nothing to measure'),
        (['--archs', 'dat-tinny'], "arch 'dat-tinny' is not known"),
        (['--archs', 'dat-nano', '--sizes', '3x'], "size '3x'"),
        (['--archs', 'dat-nano', '--batches', '0'], '--batches 0 is not positive'),
        (['--archs', 'dat-nano', '--backends', 'fast'], "backend 'fast' is not known"),
        (['--peers', 'swin'], "peer 'swin'"),
        (['--suite', 'cpu', '--groups', 'none'], "group 'none' is not known"),
        (['--archs', 'dat-nano', '--runtimes', 'tensorrt'], "runtime 'tensorrt' is not known"),
        (
            ['--archs', 'dat-nano', '--runtimes', 'onnxruntime', '--dtypes', 'bfloat16'],
            "dtype for onnxruntime 'bfloat16' is not known: there are float32",
        ),
        (['--archs', 'dat-nano', '--runtimes', 'openvino', '--modes', 'training'], "mode for openvino 'training'"),
        (['--archs', 'dat-nano', '--runtimes', 'openvino', '--device', 'cuda'], "device for openvino 'cuda'"),
        (['--archs', OP, '--runtimes', 'openvino'], f"arch for openvino '{OP}'"),
    ],
)
def test_bad_options_are_told_in_one_line(arguments, message):
    with pytest.raises(SystemExit) as caught:
        tool.main(arguments)
    assert message in caught.value.code and '\n' not in caught.value.code
