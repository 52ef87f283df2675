# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/report.py does: one HTML page of training runs, side by side, with everything inside it."""

import json
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from ..engine.checkpoints import latest_checkpoint
from ..errors import UserError
from ..visualize.figures import as_html
from ..visualize.inline import img, source_of
from . import analyze
from .document import write_document

# The names of results in the metafiles, the toolboxes' names for them, and the factor between the two
RESULTS = {
    'box AP': ('coco/bbox_mAP', 100),
    'box AP50': ('coco/bbox_mAP_50', 100),
    'box AP75': ('coco/bbox_mAP_75', 100),
    'mask AP': ('coco/segm_mAP', 100),
    'mask AP50': ('coco/segm_mAP_50', 100),
    'mask AP75': ('coco/segm_mAP_75', 100),
    'mIoU': ('mIoU', 1),
    'mAcc': ('mAcc', 1),
    'aAcc': ('aAcc', 1),
    'Top 1 Accuracy': ('accuracy/top1', 1),
    'Top 5 Accuracy': ('accuracy/top5', 1),
}
STAMP = '[0-9]*_[0-9]*'  # the names that mmengine makes of the date and the time
LONGEST = 900  # pixels along a side of a picture on the page


@dataclass
class Run:
    """What the page tells of a run."""

    name: str
    folder: Path
    config: Path | None
    config_name: str
    checkpoint: Path | None
    training: dict
    metrics: dict


def read(name: str, folder: Path) -> Run:
    """Reads a run's folder. Its config is the one that mmengine wrote there."""
    if not folder.is_dir():
        raise UserError(f'{folder}: no such work dir')
    training, metrics = analyze.read_run(folder)
    add_tests(folder, metrics)
    named = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    # a test with --tta writes its own config over the one in the folder; that of the training is beside its log
    trained = [path for path in sorted(folder.glob('*/vis_data/config.py')) if '"lr"' in log_beside(path)]
    config = (trained or named or [None])[-1]
    config_name = named[-1].stem if named else '-'
    return Run(name, folder, config, config_name, latest_checkpoint(folder), training, metrics)


def add_tests(folder: Path, metrics: dict) -> None:
    """Adds what tests of the run found, in its folder or below, to the metrics of its evaluations while it trained."""
    for file in sorted(folder.rglob(f'{STAMP}/{STAMP}.json')):
        found = json.loads(file.read_text())
        for name, value in found.items() if isinstance(found, dict) else ():
            if name in analyze.BESIDES or not isinstance(value, (int, float)):
                continue
            if value != -1:  # COCO's word for sizes that the data has no objects of
                steps = metrics.setdefault(name, {})
                steps[max(steps, default=0) + 1] = value


def log_beside(config: Path) -> str:
    log = config.with_name('scalars.json')
    return log.read_text() if log.is_file() else ''


def published(config_name: str) -> tuple[dict, str]:
    """Finds what is published for a config, {'box AP': 44.4, ...}, and where that is from."""
    import yaml

    package = Path(__file__).resolve().parents[1]
    for top in (package / '.mim', package.parent):
        for file in sorted(top.glob('configs/*/metafile.yml')):
            for model in yaml.safe_load(file.read_text()).get('Models') or ():
                if model['Name'] == config_name:
                    found = {}
                    for result in model.get('Results', ()):
                        found.update(result['Metrics'])
                    return found, model.get('Results From', '')
    return {}, ''


def tag(name: str, content: str, **attributes) -> str:
    """Makes an element of trusted content."""
    words = ''.join(f' {key.rstrip("_")}="{escape(str(value))}"' for key, value in attributes.items())
    return f'<{name}{words}>{content}</{name}>'


def table(head, rows) -> str:
    """Makes a table of texts. The best of the numbers of a row may be marked by its caller as `<b>`."""
    top = tag('tr', ''.join(tag('th', cell, scope='col') for cell in head))
    body = ''.join(tag('tr', ''.join(tag('td', cell) for cell in row)) for row in rows)
    return tag('div', tag('table', tag('thead', top) + tag('tbody', body)), class_='wide')


def side_by_side(runs, part) -> str:
    """Makes a column for each run from what `part` gives for it."""
    columns = (tag('section', tag('h3', escape(run.name)) + part(run)) for run in runs)
    return tag('div', ''.join(columns), class_='runs')


def results(runs) -> str:
    """The best of each metric in each run, beside what is published for its config."""
    theirs = {run.name: published(run.config_name) for run in runs}
    rows = []
    for name, (key, factor) in RESULTS.items():
        if not any(key in run.metrics for run in runs):
            continue
        values = [factor * analyze.best(key, run.metrics[key])[1] if key in run.metrics else None for run in runs]
        most = max(value for value in values if value is not None)
        cells = [escape(name)]
        for run, value in zip(runs, values, strict=True):
            text = '-' if value is None else f'{value:.1f}'
            cells.append(f'<b>{text}</b>' if value == most and len(runs) > 1 else text)
            known = theirs[run.name][0].get(name)
            cells.append('-' if known is None else f'{known:.1f}')
        rows.append(cells)
    known = {key for key, _ in RESULTS.values()}
    others = {key for run in runs for key in run.metrics} - known
    for key in sorted(key for key in others if not key.startswith(analyze.ASIDE)):
        values = [run.metrics.get(key) for run in runs]
        cells = [escape(key)]
        for value in values:
            cells += ['-' if value is None else f'{analyze.best(key, value)[1]:.4g}', '-']
        rows.append(cells)
    if not rows:
        return tag('p', 'No evaluation is in the logs.', class_='soft')
    head = ['']
    for run in runs:
        head += [escape(run.name), 'published']
    sources = sorted({f'{run.config_name}: {source}' for run in runs if (source := theirs[run.name][1])})
    note = 'Best of each run. ' + (
        f'Published: {"; ".join(sources)}.' if sources else 'Nothing is published for these configs.'
    )
    return table(head, rows) + tag('p', escape(note), class_='soft')


def summary(runs) -> str:
    rows = []
    for run in runs:
        steps = max((max(values) for values in run.training.values()), default=0)
        loss = run.training.get('loss')
        last = f'{loss[max(loss)]:.4g}' if loss else '-'
        checkpoint = escape(run.checkpoint.name) if run.checkpoint else '-'
        rows.append([escape(run.name), escape(run.config_name), str(steps), last, checkpoint])
    return table(['run', 'config', 'last step logged', 'last loss', 'checkpoint'], rows)


def curves(runs) -> str:
    """The losses, the metrics and, where they were logged, the offsets, with a line for each run."""
    series = {run.name: (run.training, run.metrics) for run in runs}
    parts = []
    for part, title in enumerate(('losses', 'metrics')):
        # a single value, as of a test, makes no curve
        found = {key for run in series.values() for key, values in run[part].items() if len(values) > 1}
        found = sorted(found, key=lambda key: (key != 'loss', key))
        plain = [key for key in found if not key.startswith(analyze.ASIDE)]
        aside = [key for key in found if key.startswith(analyze.ASIDE)]
        for keys, name in ((plain, title), (aside, 'attention')):
            if keys:
                parts.append(tag('h3', name) + as_html(analyze.draw(series, part, keys, ''), alt=f'curves of {name}'))
    return ''.join(parts)


def as_image(pixels: np.ndarray, alt: str) -> str:
    """A picture (H, W, 3) in RGB as an <img> with its pixels inside."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels.astype(np.uint8)))
    picture.thumbnail((LONGEST, LONGEST))
    return img(source_of(lambda file: picture.save(file, 'JPEG', quality=88), 'jpeg'), alt)


def sample_files(cfg, count: int) -> list[Path]:
    """The files of some pictures of the test data, spread evenly over it."""
    from mmengine.registry import DATASETS

    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    numbers = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    paths = [Path(dataset.get_data_info(int(i))['img_path']) for i in numbers]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f'{missing[0]}: no such picture')
    return paths


def pictures(run: Run, count: int, device, score_thr: float) -> tuple[str, str]:
    """The predictions of a run's last checkpoint on some test pictures, and its attention in them."""
    from .infer import load_predictor
    from .prepare import prepare
    from .visualize_attention import look, see_whole

    def sorry(reason):
        text = tag('p', escape(f'None: {reason}'), class_='soft')
        return text, text

    if count < 1:
        return sorry('--samples 0')
    if run.config is None or run.checkpoint is None:
        return sorry(f'{run.folder} has no {"checkpoint" if run.config else "config"}')
    try:
        paths = sample_files(prepare(run.config, phases=('test',)), count)
        predictor = load_predictor(run.config, run.checkpoint, device=device, score_thr=score_thr, edit=see_whole)
    except (UserError, OSError) as error:
        return sorry(str(error))
    predictions = []
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            drawn, _ = predictor(path, Path(folder, f'{path.stem}.png'))
            caption = tag('figcaption', escape(path.name))
            predictions.append(tag('figure', as_image(drawn, f'predictions on {path.name}') + caption))
    try:
        views = [look(predictor, path, score_thr=score_thr) for path in paths[:2]]
    except UserError as error:
        attention = tag('p', escape(f'None: {error}'), class_='soft')
    else:
        attention = ''.join(
            tag('figure', as_html(view.figure(), alt=f'attention in {view.title}')
                + tag('figcaption', f'{escape(view.title)}: {escape(view.layer.label)}'))
            for view in views
        ) + as_html(views[0].figure('offsets'), alt='offsets by layer and group')  # fmt: skip
    return tag('div', ''.join(predictions), class_='pictures'), attention


def environment(run: Run) -> str:
    """What mmengine wrote about the machine and the versions into the run's log."""
    for file in sorted(run.folder.glob('*/*.log'), reverse=True):
        text = file.read_text(errors='replace')
        _, found, rest = text.partition('System environment:')
        if found:
            rest = rest.split('\nRuntime environment')[0].split('\n-----')[0]
            return tag('pre', escape(rest.strip('\n -')))
    return tag('p', 'No log tells of it.', class_='soft')


def config_text(run: Run) -> str:
    if run.config is None:
        return tag('p', 'None was found.', class_='soft')
    text = run.config.read_text(errors='replace')
    return tag('details', tag('summary', escape(f'{run.config_name}.py')) + tag('pre', escape(text)))


def report(work_dirs, *, out=None, samples=4, device=None, score_thr=0.3) -> Path:
    """Writes the page and returns its path."""
    import matplotlib

    matplotlib.use('Agg')
    folders = [Path(work_dir) for work_dir in work_dirs]
    runs = [read(name, folder) for name, folder in zip(analyze.names_of(folders), folders, strict=True)]
    shown = {run.name: pictures(run, samples, device, score_thr) for run in runs}
    parts = {
        'Runs': summary(runs),
        'Results': results(runs),
        'Curves': curves(runs),
        'Sample predictions': side_by_side(runs, lambda run: shown[run.name][0]),
        'Attention': side_by_side(runs, lambda run: shown[run.name][1]),
        'Config': side_by_side(runs, config_text),
        'Environment': side_by_side(runs, environment),
    }
    title = f'Report: {", ".join(run.name for run in runs)}'
    body = '\n'.join(tag('h2', name) + content for name, content in parts.items())
    path = Path(out) if out else folders[0] / 'report.html'
    write_document(path, title, body)
    print(path)
    return path
