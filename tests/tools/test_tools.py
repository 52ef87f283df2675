# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import ast
import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import run_alone

from dat_mm.commands import cli

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
NAMES = sorted(path.stem for path in TOOLS.glob('*.py'))
SCOPES = ('mmpretrain', 'mmdet', 'mmseg')
METRICS = {'mmpretrain': 'accuracy/top1', 'mmdet': 'coco/bbox_mAP', 'mmseg': 'mIoU'}


def main_of(tool):
    spec = importlib.util.spec_from_file_location(f'tool_{tool}', TOOLS / f'{tool}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def run(tool, *arguments):
    main_of(tool)([str(argument) for argument in arguments])


def pictures(folder):
    return [np.asarray(Image.open(path).convert('RGB')) for path in sorted(Path(folder).rglob('*.png'))]


def module_of(tool):
    """The module that a tool calls: the one of its own name."""
    found = [name for room in ('commands', 'benchmark') if find_spec(name := f'dat_mm.{room}.{tool}')]
    assert len(found) == 1, f'tools/{tool}.py has these modules of its name: {found}'
    return found[0]


def positionals_of(tool, monkeypatch):
    """As many words as the tool has positional arguments."""
    made = []
    with monkeypatch.context() as patch:
        patch.setattr(cli, 'parser', lambda doc, make=cli.parser: made.append(make(doc)) or made[-1])
        with pytest.raises(SystemExit):
            run(tool, '--help')
    return ['word' for action in made[0]._get_positional_actions()]


# Runs a tool as a script, and tells at its end what slow packages it has imported.
WATCHED = """
import atexit, runpy, sys
del sys.argv[0]
slow = {'torch', 'mmengine', 'numpy'}
atexit.register(lambda: print('imported:', sorted(slow & set(sys.modules))))
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.parametrize('tool', NAMES)
def test_help_imports_nothing_slow(tool, tmp_path):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    command = [sys.executable, '-c', WATCHED, TOOLS / f'{tool}.py', '--help']
    done = subprocess.run(command, env={**os.environ, 'PYTHONPATH': path}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('usage: ')
    assert done.stdout.endswith('imported: []\n')


@pytest.mark.parametrize('tool', NAMES)
def test_unknown_options_exit_with_2(tool, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        run(tool, *positionals_of(tool, monkeypatch), '--no-such-option')
    assert caught.value.code == 2
    assert 'unrecognized arguments: --no-such-option' in capsys.readouterr().err


@pytest.mark.parametrize('tool', NAMES)
def test_a_tool_is_its_arguments_and_one_call(tool, monkeypatch):
    """It calls, through the helper, the function and module of its own name, which takes all that it parsed."""
    module = importlib.import_module(module_of(tool))
    tree = ast.parse((TOOLS / f'{tool}.py').read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == 'cli.call']
    assert [call.args[0].value for call in calls] == [module.__name__]
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert functions == ['parse_args', 'main']
    signature, called = inspect.signature(getattr(module, tool)), []

    def function(*args, **options):
        called.append(signature.bind(*args, **options))
        return True

    monkeypatch.setattr(module, tool, function)
    run(tool, *positionals_of(tool, monkeypatch))
    assert len(called) == 1


@pytest.mark.parametrize(
    ('tool', 'arguments'),
    [
        ('train', ['none.py']),
        ('test', ['none.py', 'none.pth']),
        ('infer', ['none.jpg', 'none.py', 'none.pth']),
        ('browse_data', ['none.py']),
        ('check_data', ['none.py']),
        ('analyze', ['none']),
    ],
)
def test_what_is_missing_is_told_in_one_line(tool, arguments):
    with pytest.raises(SystemExit) as caught:
        run(tool, *arguments)
    assert caught.value.code.startswith('error: none')
    assert '\n' not in caught.value.code


@pytest.mark.parametrize('scope', SCOPES)
def test_check_data_exits_with_1_where_data_is_bad(scope, tiny_config, tiny_data, tmp_path, capsys):
    config, root = tiny_config(scope), tmp_path / 'data'
    shutil.copytree(tiny_data, root)
    config.write_text(config.read_text().replace(str(tiny_data), str(root)))
    run('check_data', config, '--workers', 1)
    assert 'no faults in 6 samples' in capsys.readouterr().out
    image = root / ('folders/dark/2.png' if scope == 'mmpretrain' else 'images/2.png')
    image.write_bytes(image.read_bytes()[:3000])
    with pytest.raises(SystemExit) as caught:
        run('check_data', config, '--workers', 1)
    assert caught.value.code == 1
    assert f'{image}: is corrupt or cut off' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('scope', SCOPES)
def test_train_test_infer_browse_analyze(scope, tiny_config, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(scope).rename(tmp_path / f'tiny_{scope}.py')
    run(
        'train',
        config,
        '--seed',
        1,
        '--tensorboard',
        '--cfg-options',
        'default_hooks.attention.type=dat_mm.AttentionHook',
    )
    work_dir = tmp_path / f'work_dirs/tiny_{scope}'
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    assert list(work_dir.rglob('events.out.tfevents.*'))

    run('test', config, checkpoint, '--out', 'metrics.json', '--show-dir', 'shown')
    assert json.loads(Path('metrics.json').read_text())[METRICS[scope]] >= 0
    assert len(pictures('shown')) == 6
    run('test', config, checkpoint, '--tta', '--out', 'predictions.pkl')
    import pickle

    assert len(pickle.loads(Path('predictions.pkl').read_bytes())) == 6

    run('infer', tiny_data / 'images', config, checkpoint, '--out-dir', 'found', '--score-thr', '0.01')
    found = json.loads(Path('found/predictions.json').read_text())
    assert sorted(found) == [f'{i}.png' for i in range(6)]
    for i in range(6):
        assert Image.open(f'found/{i}.png').size >= Image.open(tiny_data / f'images/{i}.png').size
    if scope == 'mmpretrain':
        assert {entry['class'] for entry in found['0.png']['top']} == {'dark', 'light'}
        assert sum(entry['score'] for entry in found['0.png']['top']) == pytest.approx(1, abs=1e-4)
    elif scope == 'mmdet':
        assert min(found['0.png']['scores']) >= 0.01
        assert set(found['0.png']['classes']) <= {'dark', 'light'}
    else:
        assert sum(found['0.png']['shares'].values()) == pytest.approx(1)

    run('browse_data', config, '--number', 5, '--out-dir', 'fed')
    run('browse_data', config, '--number', 5, '--out-dir', 'fed_again')
    fed, again = pictures('fed'), pictures('fed_again')
    assert len(fed) == 5
    assert all(np.array_equal(a, b) for a, b in zip(fed, again, strict=True))
    run('browse_data', config, '--phase', 'val', '--number', 1)
    assert len(pictures(f'work_dirs/browse/tiny_{scope}/val')) == 1

    capsys.readouterr()
    run('analyze', work_dir)
    table = capsys.readouterr().out
    assert METRICS[scope] in table and '| loss |' in table
    assert (work_dir / 'results.md').read_text() in table
    assert len({picture.std() > 1 for picture in pictures(work_dir)}) == 1
    assert (work_dir / 'losses.png').exists() and (work_dir / 'metrics.png').exists()

    shown = sorted(work_dir.rglob('vis_image/attention_overview_*.png'))
    logged = ''.join(path.read_text() for path in work_dir.rglob('scalars.json'))
    assert len(shown) == logged.count('"attention/backbone.stages.3.blocks.1.attn/offset"') >= 3
    assert np.asarray(Image.open(shown[0])).std() > 10
    assert 'attention/' not in table

    run('report', work_dir, '--samples', 2, '--out', 'report.html')
    page = Path('report.html').read_text()
    for part in ('Results', 'Curves', 'Sample predictions', 'Attention', 'Config', 'Environment'):
        assert f'<h2>{part}</h2>' in page
    assert 'None: ' not in page
    assert page.count('alt="predictions on ') == page.count('alt="attention in ') == 2
    assert 'alt="curves of attention"' in page and 'dat_mm.AttentionHook' in page and 'sys.platform' in page
    assert METRICS[scope].split('/')[-1] in page or 'Accuracy' in page or 'box AP' in page

    with pytest.raises(SystemExit, match='is not of this model'):
        torch.save({'state_dict': {'backbone.a': torch.zeros(1)}}, 'other.pth')
        run('test', config, 'other.pth')


def test_browse_shows_the_colours_of_the_file(tiny_config, tiny_data, tmp_path):
    """Not their negative, not blue for red: as the picture was before it was normalised."""
    red = tmp_path / 'folders/red'
    red.mkdir(parents=True)
    Image.new('RGB', (64, 64), (200, 30, 10)).save(red / 'red.png')
    config = tiny_config('mmpretrain')
    run('browse_data', config, '--phase', 'val', '--number', 1, '--out-dir', tmp_path / 'fed', '--cfg-options',
        f'val_dataloader.dataset.data_root={tmp_path}')  # fmt: skip
    (picture,) = pictures(tmp_path / 'fed')
    assert np.abs(picture[-20:, -20:].reshape(-1, 3).mean(0) - (200, 30, 10)).max() < 3


def write_log(folder, lines):
    path = Path(folder) / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(lines))


def test_analyze_joins_the_parts_of_a_run_and_compares_runs(tmp_path, capsys):
    a, b = tmp_path / 'a', tmp_path / 'b'
    write_log(a / '1', ['{"lr": 1, "loss": 9.0, "step": 1}', '{"lr": 1, "loss": 8.0, "step": 2}', '{"coco/mAP": 0.1, '
                        '"coco/mAP_s": -1, "step": 1}', '{"lr": 1, "loss": 1.0, "st'])  # fmt: skip
    write_log(a / '2', ['{"lr": 1, "loss": 7.5, "step": 2}', '{"coco/mAP": 0.3, "step": 2}', '{"coco/mAP": 0.2, '
                        '"step": 3}'])  # fmt: skip
    write_log(b / '1', ['{"lr": 1, "loss": 5.0, "step": 50}', '{"mIoU": 40.0, "step": 0}', '{"lr": 1, "loss": 6.0, '
                        '"step": 100}', '{"mIoU": 39.0, "step": 0}'])  # fmt: skip
    run('analyze', a, b, '--out-dir', tmp_path / 'out')
    rows = (tmp_path / 'out/results.md').read_text().splitlines()[2:]
    assert rows == [
        '| a | coco/mAP | 0.3 | 2 | 0.2 |',
        '| a | loss | 7.5 | 2 | 7.5 |',
        '| b | mIoU | 40 | 50 | 39 |',
        '| b | loss | 5 | 50 | 6 |',
    ]
    with pytest.raises(SystemExit, match='--keys acc: not logged; there are coco/mAP, loss, lr, mIoU'):
        run('analyze', a, b, '--keys', 'acc')


def shell(script, *arguments, **variables):
    return run_alone(['bash', TOOLS / script, *arguments], env={**os.environ, **variables})


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='two processes on the CPU')
def test_two_processes_train_and_test_on_the_cpu(tiny_config, tmp_path):
    config, work_dir = tiny_config('mmseg'), tmp_path / 'work'
    variables = dict(PYTHON=sys.executable, OMP_NUM_THREADS='1', PORT=str(29500 + os.getpid() % 1000))
    done = shell('dist_train.sh', config, 2, '--work-dir', work_dir, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'GPU number: 2' in done.stdout + done.stderr
    options = ('--work-dir', work_dir, '--out', tmp_path / 'metrics.json')
    done = shell('dist_test.sh', config, work_dir / 'iter_9.pth', 2, *options, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / 'metrics.json').read_text())['mIoU'] > 0


ECHO = '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n'
SCRIPTS = {
    'dist_train.sh': (['a b.py', 4], dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='host', PORT='1234')),
    'dist_test.sh': (['a b.py', 'c d.pth', 4], dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='host', PORT='1234')),
    'slurm_train.sh': (['part', 'job', 'a b.py', 'w d'], dict(GPUS='16', SRUN_ARGS='--qos=high --exclusive')),
    'slurm_test.sh': (['part', 'job', 'a b.py', 'c d.pth'], dict(GPUS='4', CPUS_PER_TASK='7')),
}
EXPECTED = {
    'dist_train.sh': ['--nnodes=2', '--node_rank=1', '--master_addr=host', '--master_port=1234', '--nproc_per_node=4'],
    'dist_test.sh': ['--nnodes=2', '--node_rank=1', 'c d.pth', '--nproc_per_node=4', 'pytorch'],
    'slurm_train.sh': [
        *('--partition=part', '--job-name=job', '--ntasks=16', '--ntasks-per-node=8', '--gres=gpu:8'),
        *('--cpus-per-task=5', '--qos=high', '--exclusive', 'w d', 'slurm', '--nodes=2'),
    ],
    'slurm_test.sh': ['--ntasks=4', '--ntasks-per-node=4', '--gres=gpu:4', '--cpus-per-task=7', 'c d.pth', 'slurm'],
}


@pytest.mark.parametrize('script', SCRIPTS)
def test_launch_scripts_pass_everything_on(script, tmp_path):
    arguments, variables = SCRIPTS[script]
    for name in ('srun', 'python'):
        (tmp_path / name).write_text(ECHO)
        (tmp_path / name).chmod(0o755)
    unset = {key: '' for key in ('PYTHON', 'GPUS_PER_NODE', 'SRUN_ARGS') if key not in variables}
    path = {'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
    done = shell(script, *arguments, '--cfg-options', 'a=b c', **{**unset, **path, **variables})
    passed = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert set(EXPECTED[script]) <= set(passed)
    assert passed[-2:] == ['--cfg-options', 'a=b c']
    assert 'a b.py' in passed
    assert shell(script, 'one').returncode == 2


def test_slurm_scripts_take_tasks_where_there_are_no_gpus(tmp_path):
    for name in ('srun', 'sbatch'):
        (tmp_path / name).write_text(ECHO)
        (tmp_path / name).chmod(0o755)
    variables = dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='0', TASKS='6', TASKS_PER_NODE='4', SRUN_ARGS='')
    work_dir = tmp_path / 'w d'
    for script in ('slurm_train.sh', 'slurm_submit.sh'):
        done = shell(script, 'part', 'job', 'a b.py', work_dir, '--seed', '1', **variables)
        assert done.returncode == 0, done.stderr
        passed = done.stdout.splitlines()
        assert {'--partition=part', '--nodes=2', '--ntasks=6', '--ntasks-per-node=4'} <= set(passed)
        assert not any(word.startswith('--gres') for word in passed)
    assert '--requeue' in passed and '--signal=B:USR1@120' in passed and passed[-1] == str(work_dir / 'job.sh')
    job = (work_dir / 'job.sh').read_text()
    assert 'a\\ b.py' in job and '--resume' in job and '--seed 1' in job
    assert subprocess.run(['bash', '-n', work_dir / 'job.sh']).returncode == 0
