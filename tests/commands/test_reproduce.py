# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Tables of results: which rows there are, which checkpoint is whose, what is measured, and where it is written."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmengine')

from mmengine.config import Config
from runs import run as run_tool
from runs import run_alone

from dat_mm.commands.reproduce import plan, reproduce, runs, table, weights
from dat_mm.commands.reproduce.reproduce import Reproduction, data_options, seeds_of
from dat_mm.commands.reproduce.rows import Row, named, read_rows, task_of, with_pretraining
from dat_mm.commands.reproduce.runs import How, Run
from dat_mm.commands.reproduce.submit import by_generation, job_script
from dat_mm.commands.screen import Screen
from dat_mm.errors import UserError

pytestmark = pytest.mark.one_stack

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
TOOLS = ROOT / 'tools'


def row(name, published=(), pretrained=None):
    return Row(name, Path('configs/x') / f'{name}.py', dict(published), pretrained, None)


def measured(metrics, seed=None, **more):
    return dict(row='a', seed=seed, metrics=metrics, train_seconds=10, test_seconds=2, hardware='H', commit='abc',
                checkpoint='epoch_1.pth', **more)  # fmt: skip


# ---- rows


def test_the_rows_are_those_of_the_metafile_with_what_was_published():
    rows = {row.name: row for row in read_rows([CONFIGS / 'ade20k'])}
    found = rows['dat-tiny_semantic-fpn_8xb4-40k_ade20k-512x512']
    assert found.published == {'mIoU': 42.56, 'mIoU(ms+flip)': 44.22, 'mAcc': 54.72}
    assert found.augmented
    assert found.pretrained == CONFIGS / 'imagenet/dat-tiny_32xb128_in1k.py'
    assert len(rows) == 18
    assert not any(row.augmented for row in read_rows([CONFIGS / 'coco']))


def test_a_single_config_is_its_row(tmp_path):
    path = CONFIGS / 'imagenet/datpp-base_32xb24_in1k-384px.py'
    (found,) = read_rows([path])
    assert found.published['Top 1 Accuracy'] == 85.9
    other = tmp_path / 'mine.py'
    other.write_text('')
    assert read_rows([other]) == [Row('mine', other, {}, None, None)]


@pytest.mark.parametrize('path', ['nowhere', '.'])
def test_what_is_no_row_is_refused(path, tmp_path):
    with pytest.raises(UserError, match=r'metafile\.yml|neither a folder'):
        read_rows([tmp_path / path])


def test_trainings_that_others_start_from_come_first():
    rows = with_pretraining(read_rows([CONFIGS / 'shapes/mask-rcnn_swin-nano_fpn_1xb4_shapes.py']))
    assert [row.name for row in rows] == ['swin-nano_1xb32_shapes', 'mask-rcnn_swin-nano_fpn_1xb4_shapes']
    names = [row.name for row in with_pretraining(read_rows([CONFIGS / 'shapes']))]
    assert len(names) == len(set(names)) == 32
    assert {'dat-nano_1xb32_shapes', 'datpp-nano_1xb32_shapes', 'swin-nano_1xb32_shapes'} < set(names[:4])


def test_metrics_have_the_names_and_units_of_the_tables():
    assert named({'coco/bbox_mAP': 0.428, 'coco/bbox_mAP_l': -1.0, 'coco/time': 3}) == {'box AP': 42.8}
    assert named({'coco_panoptic/PQ': 53.4}) == {'PQ': 53.4} and task_of('PQ') == 'Panoptic Segmentation'
    assert named({'mIoU': 44.2}, augmented=True) == {'mIoU(ms+flip)': 44.2}


@pytest.mark.parametrize(('text', 'seeds'), [('3', [0, 1, 2]), ('0,4', [0, 4]), ('7,', [7])])
def test_seeds(text, seeds):
    assert seeds_of(text) == seeds


@pytest.mark.parametrize('text', ['0', 'a', '1.5', ','])
def test_what_are_no_seeds_is_refused(text):
    with pytest.raises(UserError, match=f'--seeds {text}'):
        seeds_of(text)


def test_each_folder_may_have_its_data():
    rows = [*read_rows([CONFIGS / 'coco'])[:1], *read_rows([CONFIGS / 'ade20k'])[:1]]
    assert list(data_options(['/d'], rows).values()) == [['data_root=/d']] * 2
    assert list(data_options(['ade20k=/a'], rows).values()) == [[], ['data_root=/a']]
    for wrong in (['/a', '/b'], ['imagenet=/a']):
        with pytest.raises(UserError, match='--data-root'):
            data_options(wrong, rows)


# ---- checkpoints


@pytest.mark.parametrize(
    ('file', 'config'),
    [
        ('dat_pp_tiny_in1k_224', 'imagenet/datpp-tiny_32xb128_in1k'),
        ('dat_pp_base_in1k_384', 'imagenet/datpp-base_32xb24_in1k-384px'),
        ('rtn_tiny_3x_4n_dp02_lr2', 'coco/retinanet_datpp-tiny_fpn_32xb2-ms-3x_coco'),
        ('mrcn_small_1x_4n_dp01_lr4', 'coco/mask-rcnn_datpp-small_fpn_32xb2-ms-1x_coco'),
        ('cmrcn_base_3x_8n_dp08_lr4', 'coco/cascade-mask-rcnn_datpp-base_fpn_64xb1-ms-3x_coco'),
        ('upernet_dat_pp_small_160k', 'ade20k/datpp-small_upernet_8xb2-160k_ade20k-512x512'),
    ],
)
def test_a_checkpoint_of_the_authors_is_found_by_its_name_and_its_content(file, config, tmp_path, monkeypatch):
    """The content of a file stands here for the generation of the model, which the names do not always say."""
    for name in (file, 'rtn_tiny_1x_4n_dp00_lr2', 'cmrcn_tiny_1x_4n_dp00_lr4', 'dat_pp_small_in1k_224', 'notes'):
        (tmp_path / f'{name}.pth').touch()
    monkeypatch.setattr(weights, 'shapes_of', lambda config: 'datpp' if 'datpp' in str(config) else 'dat')
    monkeypatch.setattr(weights, 'fits', lambda path, shapes: '' if shapes == 'datpp' and path.stem == file else 'no')
    for folder in ('imagenet', 'coco', 'ade20k'):
        for wanted in read_rows([CONFIGS / folder]):
            found, reason = weights.find(wanted, tmp_path)
            facets = weights.facets(wanted.name)
            if wanted.config == CONFIGS / f'{config}.py':
                assert found == tmp_path / f'{file}.pth'
            elif found is not None:  # names that say too little: the content, which is not looked at here, decides
                assert 'schedule' not in weights.facets(file) or facets['schedule'] == weights.facets(file)['schedule']
                assert facets['size'] == weights.facets(file)['size'] and folder == config.split('/')[0]
            else:
                assert reason


def test_two_files_that_may_be_a_rows_are_told(tmp_path, monkeypatch):
    for name in ('dat_pp_tiny_in1k_224', 'dat_pp_tiny_in1k_224_ema'):
        (tmp_path / f'{name}.pth').touch()
    monkeypatch.setattr(weights, 'shapes_of', lambda config: {})
    monkeypatch.setattr(weights, 'fits', lambda path, shapes: '')
    with pytest.raises(UserError, match=r'datpp-tiny_32xb128_in1k: .*_224\.pth, .*_ema\.pth may all be its checkpoint'):
        weights.find(read_rows([CONFIGS / 'imagenet/datpp-tiny_32xb128_in1k.py'])[0], tmp_path)
    (tmp_path / 'datpp-tiny_32xb128_in1k.pth').touch()
    found, _ = weights.find(read_rows([CONFIGS / 'imagenet/datpp-tiny_32xb128_in1k.py'])[0], tmp_path)
    assert found.stem == 'datpp-tiny_32xb128_in1k'


def test_a_file_of_another_model_does_not_fit(golden, tmp_path):
    torch.save({'model': golden('v1_tiny_224').state_dict()}, tmp_path / 'dat_tiny_in1k_224.pth')
    shapes = weights.shapes_of(CONFIGS / 'imagenet/dat-tiny_32xb128_in1k.py')
    assert weights.fits(tmp_path / 'dat_tiny_in1k_224.pth', shapes) == ''
    other = weights.shapes_of(CONFIGS / 'imagenet/dat-small_32xb128_in1k.py')
    assert 'lacks' in weights.fits(tmp_path / 'dat_tiny_in1k_224.pth', other)
    bigger = {**shapes, 'head.fc.weight': (21841, 768)}
    assert 'head.fc.weight has shape (1000, 768) and not (21841, 768)' in weights.fits(
        tmp_path / 'dat_tiny_in1k_224.pth', bigger
    )


# ---- the table


def test_a_line_has_mean_spread_and_difference():
    results = [measured({'box AP': 40.0}, 0), measured({'box AP': 42.0}, 1)]
    (line,) = table.collect(row('a', {'box AP': 40.5, 'mask AP': 1.0}), results)
    assert line == dict(
        row='a', metric='box AP', published=40.5, measured=41.0, difference=0.5, spread=pytest.approx(1.414), seeds=2
    )
    text = table.markdown([(row('a', {'box AP': 40.5}), results)])
    assert '| a | box AP | 40.50 | 41.00 ± 1.41 | +0.50 | 2 | 10 | 2 | H | abc |' in text


def test_figures_are_written_beside_the_configs_again_and_again(tmp_path):
    readme, metafile = tmp_path / 'README.md', tmp_path / 'metafile.yml'
    readme.write_text(f'# Title\n\n{table.BEGIN}\n{table.END}\n\nrest\n')
    entries = ('  - Name: a\n    Config: configs/a.py\n    Metadata:\n      Parameters: 1\n'
               '  - Name: b\n    Config: configs/b.py\n    Results:\n      - Task: Object Detection\n'
               '        Dataset: COCO\n        Metrics:\n          box AP: 3\n    Results From: a paper\n')  # fmt: skip
    metafile.write_text('# head\nModels:\n' + entries)
    a, b = (
        Row(name, tmp_path / f'{name}.py', dict(pub), None, metafile) for name, pub in (('a', ()), ('b', {'box AP': 3}))
    )
    for value in (40.0, 44.0):
        done = [(a, [measured({'box AP': value, 'mask AP': 2.0})]), (b, [measured({'box AP': 1.0})])]
        table.write_metafile(metafile, done)
        table.write_readme(readme, done)
    text = metafile.read_text()
    assert text.startswith('# head\nModels:\n') and text.count('box AP: 44') == 1 and 'box AP: 40' not in text
    assert text.count('Results From: tools/reproduce.py, one seed') == 1 and 'Results From: a paper' in text
    assert 'Task: Instance Segmentation' in text
    text = readme.read_text()
    assert text.startswith('# Title') and text.endswith('\n\nrest\n') and text.count('44.00') == 1
    assert '[a](a.py)' in text and '40.00' not in text


def test_results_of_several_calls_are_one_table(tmp_path):
    """Seeds and rows add up, whatever call measured them; a result of other settings takes the place of the earlier."""
    file, a, b = tmp_path / 'measured.json', row('a'), row('b')

    def result(value, seed, *options):
        return {**measured({'box AP': value}, seed), 'asked': dict(seed=seed, options=list(options))}

    table.with_earlier(file, [a, b], [(b, [result(1.0, 0)])])
    both = table.with_earlier(file, [a, b], [(a, [result(3.0, 2)]), (b, [result(2.0, 1)])])
    assert [(row.name, [r['metrics']['box AP'] for r in results]) for row, results in both] == [
        ('a', [3.0]), ('b', [1.0, 2.0]),
    ]  # fmt: skip
    _, (_, results) = table.with_earlier(file, [a, b], [(b, [result(5.0, 0)])])
    assert [r['metrics']['box AP'] for r in results] == [5.0, 2.0]
    ((_, results),) = table.with_earlier(file, [b], [(b, [result(7.0, 0, 'model.x=1')])])
    assert [r['metrics']['box AP'] for r in results] == [7.0]


def test_a_readme_without_a_place_is_left_alone(tmp_path):
    (tmp_path / 'README.md').write_text('nothing')
    with pytest.raises(UserError, match='has no place for the figures'):
        table.write_readme(tmp_path / 'README.md', [(row('a'), [measured({})])])


# ---- plans and jobs


@pytest.mark.parametrize(
    ('config', 'iterations', 'processes'),
    [
        ('coco/mask-rcnn_dat-tiny_fpn_8xb2-1x_coco', 12 * 7330, 8),
        ('ade20k/datpp-tiny_upernet_8xb2-160k_ade20k-512x512', 160000, 8),
        ('imagenet/dat-tiny_32xb128_in1k', 300 * 313, 32),
    ],
)
def test_the_length_of_a_published_training(config, iterations, processes):
    cfg = Config.fromfile(CONFIGS / f'{config}.py')
    length = plan.length_of(cfg, plan.training_images(cfg))
    assert (length.iterations, length.processes) == (iterations, processes)
    assert length.images == iterations * cfg.auto_scale_lr.base_batch_size


def reproduction(rows, tmp_path, **options):
    settings = dict(train=True, seeds=[0], weights_dir=None, work_dirs=tmp_path / 'none', data_root=())
    return Reproduction(rows, How(TOOLS, tmp_path / 'out'), **{**settings, **options}, screen=Screen(io.StringIO()))


def test_each_task_of_an_array_does_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = read_rows([CONFIGS / 'shapes/retinanet_dat-nano_fpn_1xb4_shapes.py'])
    work = reproduction(rows, tmp_path, seeds=[3, 4])
    script = job_script(work.all_runs(), work)
    lines = [line for line in script.splitlines() if line.endswith(';;')]
    assert [line.split(')')[0] for line in lines] == ['0', '1', '2', '3']
    assert 'dat-nano_1xb32_shapes/seed-4/train/interrupted.pth' in lines[1] and '--seeds 4,' in lines[1]
    assert 'retinanet_dat-nano' in lines[2] and '--seeds 3,' in lines[2]
    assert subprocess.run(['bash', '-n'], input=script, text=True).returncode == 0


def test_each_generation_of_trainings_is_a_job_of_its_own():
    names = ('classifier', 'detector', 'tested', 'segmentor', 'other')
    starts = {'detector': 'classifier', 'segmentor': 'detector', 'tested': 'classifier'}
    rows = [row(name, pretrained=row(starts[name]).config if name in starts else None) for name in names]
    found = [SimpleNamespace(row=one, checkpoint=Path('x.pth') if one.name == 'tested' else None) for one in rows]
    groups = by_generation(found, rows)
    assert {name: [run.row.name for run in group] for name, group in groups.items()} == {
        'pretraining': ['classifier', 'other'],
        'rows': ['detector', 'tested'],
        'rows-2': ['segmentor'],
    }
    assert list(groups) == ['pretraining', 'rows', 'rows-2']


def test_slurm_is_needed_to_submit(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UserError, match='--submit needs sbatch'):
        reproduce([CONFIGS / 'shapes/dat-nano_1xb32_shapes.py'], tools=TOOLS, out=tmp_path, train=True, submit='main')


# ---- runs


def test_tools_run_on_one_process_or_several_or_by_slurm():
    how = How(TOOLS, Path('out'))
    assert how.command('test', 'a')[:2] == [sys.executable, '-u']
    how.processes = 4
    assert '--nproc_per_node 4' in ' '.join(how.command('train')) and how.command('train')[-1] == 'pytorch'
    how.launcher, how.srun = 'slurm', ['--mem=0']
    assert how.command('train')[:3] == ['srun', '--kill-on-bad-exit=1', '--mem=0']


def test_a_result_counts_for_what_it_was_asked_for(tmp_path):
    checkpoint = tmp_path / 'a.pth'
    checkpoint.write_bytes(b'1')
    run = Run(row('a'), How(TOOLS, tmp_path), checkpoint=checkpoint)
    run.folder.mkdir()
    run.file.write_text(json.dumps(dict(asked=run.asked, metrics={})))
    assert run.result() is not None
    checkpoint.write_bytes(b'another')
    assert run.result() is None
    run.file.write_text('{"asked"')
    assert run.result() is None


def test_nothing_to_measure_is_told(tmp_path):
    with pytest.raises(UserError, match=r'nothing to measure \(datpp-tiny_32xb128_in1k: no checkpoint in '):
        reproduce(
            [CONFIGS / 'imagenet/datpp-tiny_32xb128_in1k.py'], tools=TOOLS, work_dirs=tmp_path, out=tmp_path / 'o'
        )


PROGRESS_LINES = {
    'Epoch(train)  [2][ 50/100]  lr: 1.0e-03  eta: 0:00:10  time: 0.1': ('train', '2', '50', '100', '0:00:10'),
    'Iter(train) [  50/1200]  lr: 1.0e-03  eta: 0:10:00  time: 0.1': ('train', None, '50', '1200', '0:10:00'),
    'Epoch(test) [10/30]    eta: 0:00:01  time: 0.1': ('test', None, '10', '30', '0:00:01'),
}


@pytest.mark.parametrize('line', PROGRESS_LINES)
def test_progress_is_read_from_the_lines_of_the_tools(line):
    assert runs.PROGRESS.search(line).groups() == PROGRESS_LINES[line]


def tool(*arguments, cwd, env=None):
    command = [sys.executable, TOOLS / 'reproduce.py', *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return run_alone(command, cwd=cwd, env={**os.environ, 'PYTHONPATH': path, **(env or {})})


@pytest.fixture
def benchmark(tiny_config, tmp_path):
    """A folder of two rows, the second of which starts from the first."""
    folder = tmp_path / 'configs/tiny'
    folder.mkdir(parents=True)
    text = tiny_config('mmpretrain').read_text()
    (folder / 'first.py').write_text(text)
    (folder / 'second.py').write_text(text)
    (folder / 'README.md').write_text(f'{table.BEGIN}\n{table.END}\n')
    (folder / 'metafile.yml').write_text(
        'Models:\n  - Name: first\n    Config: configs/tiny/first.py\n'
        '  - Name: second\n    Config: configs/tiny/second.py\n'
        '    Metadata:\n      Pretrained From: configs/tiny/first.py\n'
    )
    return folder


@pytest.mark.slow
def test_a_plan_is_told_and_nothing_is_done(benchmark, tmp_path):
    options = ('--train-options', 'train_cfg.max_epochs=4000')
    done = tool(benchmark, '--train', '--plan', '--seeds', 2, '--out', 'out', *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    found = {words[0]: list(map(float, words[1:])) for words in lines if words and words[0] in ('first', 'second')}
    assert list(found) == ['first', 'second']
    for count, iterations, images, seconds, processes, hours in found.values():
        assert (count, iterations, images, processes) == (2, 8000, 32000, 1)
        assert hours == pytest.approx(2 * 8000 * seconds / 3600, abs=0.01) and hours > 0.01
    assert 'to train, without validations and tests; measured on' in done.stdout
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_rows_are_trained_once_and_a_table_is_written(benchmark, tmp_path):
    """The first seed is there when the second is asked for, and what fails is told when the rest is done."""
    common = (benchmark, '--train', '--out', 'out', '--write', '--train-options', 'train_cfg.max_epochs=1')
    done = tool(*common, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    first = (tmp_path / 'out/second/seed-0/result.json').read_text()
    log = (tmp_path / 'out/second/seed-0/train.log').read_text()
    assert f'init_cfg.checkpoint={tmp_path}/out/first/seed-0/train/epoch_1.pth' in log.splitlines()[0] or (
        'init_cfg.checkpoint=out/first/seed-0/train/epoch_1.pth' in log.splitlines()[0]
    )
    done = tool(*common, '--seeds', 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count('done before') == 2
    assert (tmp_path / 'out/second/seed-0/result.json').read_text() == first
    content = json.loads((tmp_path / 'out/table.json').read_text())
    assert [entry['row'] for entry in content] == ['first', 'second']
    assert all(line['seeds'] == 2 and line['spread'] is not None for entry in content for line in entry['lines'])
    assert 'tools/reproduce.py, 2 seeds' in (benchmark / 'metafile.yml').read_text()
    assert '[second](second.py)' in (benchmark / 'README.md').read_text()

    (benchmark / 'second.py').write_text('not python')
    done = tool(*common, '--seeds', '5,', cwd=tmp_path)
    assert done.returncode == 1 and 'second, seed 5: failed: ' in done.stdout
    assert done.stderr.startswith('error: 1 of 2 failed; the first: second, seed 5: ')
    assert (tmp_path / 'out/first/seed-5/result.json').is_file()


@pytest.mark.slow
def test_the_work_dirs_of_own_trainings_are_tested(benchmark, tmp_path):
    """Without --train; a row that has none is left out."""
    options = ('--no-validate', '--cfg-options', 'train_cfg.max_epochs=1')
    trained = run_tool(benchmark / 'first.py', tmp_path / 'work_dirs/first', *options)
    assert trained.returncode == 0, trained.stderr[-2000:]
    done = tool(benchmark, '--out', 'out', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'second: left out, no checkpoint in work_dirs/second' in done.stdout
    result = json.loads((tmp_path / 'out/first/result.json').read_text())
    assert result['checkpoint'] == 'epoch_1.pth' and set(result['metrics']) == {'Top 1 Accuracy'}
    assert '| first | Top 1 Accuracy |' in done.stdout


def authors_files(golden, folder):
    """The three layouts that the authors' files have, with weights by formula and heads of random numbers."""
    folder.mkdir()
    torch.save({'model': golden('v1_tiny_224').state_dict(), 'epoch': 299}, folder / 'dat_tiny_in1k_224.pth')
    backbone = {f'backbone.{key}': value for key, value in golden('det_tiny_224x320').state_dict().items()}
    for name, config in DENSE.items():
        shapes = weights.shapes_of(CONFIGS / config)
        heads = {key: 0.01 * torch.randn(shape) for key, shape in shapes.items() if not key.startswith('backbone.')}
        torch.save({'state_dict': backbone | heads, 'meta': dict(epoch=12)}, folder / f'{name}.pth')


DENSE = {
    'rtn_tiny_1x_4n_dp00_lr2': 'coco/retinanet_datpp-tiny_fpn_32xb2-ms-1x_coco.py',
    'semfpn_tiny': 'ade20k/datpp-tiny_semantic-fpn_8xb4-40k_ade20k-512x512.py',
}


@pytest.mark.slow
def test_downloaded_files_become_rows_of_the_tables(golden, tmp_path):
    """From files of the three layouts, by way of their names, to published and measured figures side by side."""
    from dat_mm.datasets import write_mini_ade20k, write_mini_coco, write_mini_imagenet

    authors_files(golden, tmp_path / 'files')
    write_mini_coco(tmp_path / 'coco', num_val=1)
    write_mini_ade20k(tmp_path / 'ade', num_val=1)
    write_mini_imagenet(tmp_path / 'imagenet')
    configs = ['imagenet/dat-tiny_32xb128_in1k.py', *DENSE.values()]
    places = [f'imagenet={tmp_path}/imagenet', f'coco={tmp_path}/coco', f'ade20k={tmp_path}/ade/ADEChallengeData2016']
    done = tool(
        *(CONFIGS / config for config in configs), '--weights', 'files', '--data-root', *places, '--out', 'out',
        '--cfg-options', 'test_dataloader.num_workers=0', cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    lines = {(line['row'], line['metric']): line for row in json.loads((tmp_path / 'out/table.json').read_text())
             for line in row['lines']}  # fmt: skip
    for config in configs:
        (wanted,) = read_rows([CONFIGS / config])
        for metric, published in wanted.published.items():
            if 'large' in metric or 'medium' in metric or 'small' in metric:  # of which the few scenes may have none
                continue
            line = lines[wanted.name, metric]
            assert line['published'] == published
            assert line['difference'] == pytest.approx(line['measured'] - published, abs=2e-3)
    assert ('datpp-tiny_semantic-fpn_8xb4-40k_ade20k-512x512', 'mIoU(ms+flip)') in lines
