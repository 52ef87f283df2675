# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/quickstart.py does: Shapes, a classifier of its crops, and Mask R-CNN with and without that backbone.

Each step has a folder and in it a step.json: what it was asked for, the seconds it took, its result. A finished step
is not done again; a training that was stopped goes on from its last checkpoint.
"""

import ctypes
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .checkpoints import latest_checkpoint
from .errors import UserError

CLASSIFIER = 'datpp-nano_1xb64_shapes'
DETECTOR = 'mask-rcnn_datpp-nano_fpn_1xb8_shapes'
CONFIGS = (CLASSIFIER, DETECTOR)
PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'numpy', 'dat_mm')
# Larger batches where there is a GPU. In float32: models as small as these wait for the launch of their kernels.
ON_GPU = {
    CLASSIFIER: ['train_dataloader.batch_size=128', 'optim_wrapper.optimizer.lr=1.5e-3'],
    DETECTOR: ['train_dataloader.batch_size=16', 'optim_wrapper.optimizer.lr=1e-3'],
}
PROGRESS = re.compile(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\].*?eta: (\S+).*?\bloss: (\S+)')
SHOWN = ('accuracy/top1', 'coco/bbox_mAP_50', 'coco/segm_mAP_50')
FIGURES = dict(box_AP50='bbox_mAP_50', mask_AP50='segm_mAP_50', box_AP='bbox_mAP', mask_AP='segm_mAP')


def say(text):
    print(f'== {text}', flush=True)


class Step:
    """One step in a folder of its own."""

    def __init__(self, folder: Path, **asked):
        self.folder, self.file = folder, folder / 'step.json'
        self.state = dict(asked=asked, seconds=0.0, result=None)
        if self.file.is_file():
            found = json.loads(self.file.read_text())
            if found['asked'] != json.loads(json.dumps(asked)):
                raise UserError(f'{folder} was made with other options: remove it to start over, or name a --work-dir')
            self.state = found
        self._before, self._start = self.state['seconds'], time.monotonic()

    @property
    def done(self):
        return self.state['result'] is not None

    def save(self, result=None):
        self.state.update(seconds=round(self._before + time.monotonic() - self._start, 1), result=result)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix('.partial')
        partial.write_text(json.dumps(self.state, indent=1))
        os.replace(partial, self.file)

    def do(self, title, run):
        """The result, of `run(self)` unless it is there."""
        if self.done:
            say(f'{title}: done before, in {self.state["seconds"]:.0f} s')
        else:
            say(title)
            self.save()
            self.save(run(self))
        return self.state['result']


def versions() -> dict:
    found = {'python': platform.python_version()}
    for name in PACKAGES:
        for distribution in (name, f'onedl-{name}'):
            try:
                found[name] = version(distribution)
            except PackageNotFoundError:
                continue
    return found


def _end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: one that is killed leaves no training behind


def call(command, log: Path, on_line):
    """Runs it, every line into the log and to `on_line`."""
    last = ''
    with (
        log.open('a') as file,
        subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            preexec_fn=_end_with_parent if sys.platform == 'linux' else None,
        ) as process,
    ):
        try:
            for line in process.stdout:
                file.write(line)
                last = line.strip() or last
                on_line(line)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise UserError(f'{last or f"exit status {process.returncode}"} (the log is {log}; run it again to go on)')


def train(config, options, root):
    """A step that trains; its result: the last checkpoint, and the versions it was trained with."""

    def run(step):
        shown = time.monotonic()

        def on_line(line):
            nonlocal shown
            if progress := PROGRESS.search(line):
                step.save()
                epoch, at, of, eta, loss = progress.groups()
                if time.monotonic() - shown > 10 or at == of:
                    shown = time.monotonic()
                    print(f'   epoch {epoch}, {at} of {of}, loss {float(loss):.2f}, {eta} left', flush=True)
            elif 'Epoch(val)' in line:  # the validations between: what is reported is tested in the end
                found = {name: re.search(rf'{name}: (\S+)', line) for name in SHOWN}
                if text := ', '.join(f'{name} {match[1]}' for name, match in found.items() if match):
                    print(f'   held out: {text}', flush=True)

        command = (sys.executable, '-W', 'ignore', root / 'tools/train.py', root / f'configs/shapes/{config}.py')
        command += ('--work-dir', step.folder, '--resume', '--seed', 0, '--cfg-options', *options)
        call(command, step.folder / 'train.log', on_line)
        return dict(checkpoint=str(latest_checkpoint(step.folder)), versions=versions())

    return run


def evaluate(config, checkpoint, options, root):
    """A step that tests on the held-out scenes and keeps the predictions."""

    def run(step):
        from .testing import test

        out = step.folder / 'predictions.pkl'
        path = root / f'configs/shapes/{config}.py'
        metrics = test(path, checkpoint, work_dir=step.folder, out=out, cfg_options=[*options, 'log_level=ERROR'])
        return {key: float(value) for key, value in metrics.items()}

    return run


def config_options(config, data_root, make, epochs, device) -> list[str]:
    """What differs from the shipped config."""
    options = [f'data_root={data_root}']
    options += [
        f'{phase}_dataloader.dataset.make.{k}={v}' for phase in ('train', 'val', 'test') for k, v in make.items()
    ]
    if epochs:
        count = epochs[CONFIGS.index(config)]
        cosine = [f'param_scheduler.1.{key}={count}' for key in ('end', 'T_max')]
        options += [*cosine, f'train_cfg.max_epochs={count}', 'train_cfg.val_interval=1']
    return options + (ON_GPU[config] if device != 'cpu' else [])


def quickstart(root, *, work_dir='work_dirs/quickstart', data_root=None, scenes=None, epochs=None):
    """Makes, trains, evaluates, draws and tells; returns what it leaves in summary.json.

    `root` holds configs/ and tools/. `scenes` and `epochs`, pairs of (train, val) and (classifier, detector), are for
    trying it out: without them everything is as shipped.
    """
    from mmengine.device import get_device

    from ..datasets import ensure_shapes

    root, work_dir = Path(root), Path(work_dir)
    data_root = Path(data_root or Path(os.environ.get('DAT_MM_DATA', 'data')) / 'shapes')
    device = get_device()
    make = dict(zip(('num_train', 'num_val'), scenes, strict=True)) if scenes else {}
    steps = {'shapes': Step(work_dir / 'shapes', data=str(data_root), **make)}
    try:
        steps['shapes'].do(f'Shapes, in {data_root}', lambda step: str(ensure_shapes(data_root, **make)))
        ensure_shapes(data_root, **make)  # the folder may have been removed since
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error

    def train_and_test(name, title, config, *more):
        options = config_options(config, data_root, make, epochs, device)
        step = steps[name] = Step(work_dir / name, config=config, options=[*options, *more])
        checkpoint = step.do(title, train(config, [*options, *more], root))['checkpoint']
        step = steps[f'test_{name}'] = Step(work_dir / name / 'test', checkpoint=checkpoint)
        step.do('its results on what was held out', evaluate(config, checkpoint, options, root))
        return checkpoint

    weights = train_and_test('classifier', 'datpp-nano learns to classify the crops of objects', CLASSIFIER)
    start_from = f'model.backbone.init_cfg.checkpoint={weights}'
    train_and_test('pretrained', 'Mask R-CNN, with that backbone', DETECTOR, start_from)
    train_and_test('scratch', 'Mask R-CNN, the same from scratch', DETECTOR)
    summary = report(work_dir, data_root, {name: step.state for name, step in steps.items()}, device)
    print(ending(summary, work_dir, data_root, root))
    return summary


def report(work_dir, data_root, states, device) -> dict:
    """Pictures and summary.json."""
    from .curves import analyze
    from .quickstart_pictures import draw_predictions

    start, detectors = time.monotonic(), ('pretrained', 'scratch')
    predictions = {name: work_dir / name / 'test/predictions.pkl' for name in detectors}
    draw_predictions(data_root, predictions, work_dir / 'predictions.png')
    keys = ('loss', *SHOWN[1:])
    analyze([work_dir / name for name in detectors], out_dir=work_dir, keys=keys, quiet=True)
    analyze([work_dir / 'classifier'], quiet=True)

    seconds = {name: state['seconds'] for name, state in states.items()}
    seconds['pictures'] = round(time.monotonic() - start, 1)
    results = {name: states[f'test_{name}']['result'] for name in ('classifier', *detectors)}
    summary = {
        **{ours: results['pretrained'][f'coco/{theirs}'] for ours, theirs in FIGURES.items()},
        **{f'scratch_{ours}': results['scratch'][f'coco/{theirs}'] for ours, theirs in FIGURES.items()},
        'crop_accuracy': round(results['classifier'][SHOWN[0]] / 100, 3),
        'seconds': round(sum(seconds.values()), 1),
        'seconds_by_step': seconds,
        'device': device_name(device),
        'versions': states['pretrained']['result']['versions'],
    }
    (work_dir / 'summary.json').write_text(json.dumps(summary, indent=1) + '\n')
    return summary


def device_name(device) -> str:
    import torch

    if device == 'cuda':
        return torch.cuda.get_device_name()
    return f'{device}, {torch.get_num_threads()} threads' if device == 'cpu' else device


def ending(summary, work_dir, data_root, root) -> str:
    tools, configs = os.path.relpath(root / 'tools'), os.path.relpath(root / 'configs')
    return f"""
                       box AP50   mask AP50
  pretrained backbone  {summary['box_AP50']:8.3f}   {summary['mask_AP50']:9.3f}
  from scratch         {summary['scratch_box_AP50']:8.3f}   {summary['scratch_mask_AP50']:9.3f}

  {summary['seconds'] / 60:.1f} minutes on {summary['device']}. In {work_dir}:
    predictions.png          held-out scenes: the truth, and what the two models found
    losses.png, metrics.png  curves of the two trainings; those of the classifier are in classifier/
    summary.json             these figures and more
    pretrained/, scratch/    checkpoints, logs, configs; remove {work_dir} to start over

  Predictions for pictures of your choice:
    python {tools}/infer.py {data_root}/images/val {work_dir}/pretrained/{DETECTOR}.py \\
        $(cat {work_dir}/pretrained/last_checkpoint)
  With COCO in data/coco (docs/data.md) and a checkpoint of the authors (docs/checkpoints.md):
    python {tools}/train.py {configs}/coco/mask-rcnn_datpp-tiny_fpn_32xb2-ms-1x_coco.py \\
        --auto-scale-lr --cfg-options model.backbone.init_cfg.checkpoint=dat_pp_tiny_in1k_224.pth"""
