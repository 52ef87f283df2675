# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/quickstart.py does: Shapes, a classifier of its crops, and Mask R-CNN with and without that backbone.

Each step has a folder and in it a step.json: what it was asked for, the seconds it took, its result. A finished step
is not done again; a training that was stopped goes on from its last checkpoint.
"""

import ctypes
import json
import os
import platform
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import packages_distributions, version
from itertools import chain
from pathlib import Path

from ...engine.checkpoints import latest_checkpoint
from ...errors import UserError

CLASSIFIER = 'datpp-nano_1xb32_shapes'
DETECTOR = 'mask-rcnn_datpp-nano_fpn_1xb4_shapes'
CONFIGS = (CLASSIFIER, DETECTOR)
PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'numpy', 'dat_mm')
# Larger batches where there is a GPU. In float32: models as small as these wait for the launch of their kernels.
ON_GPU = {
    CLASSIFIER: ['train_dataloader.batch_size=64', 'optim_wrapper.optimizer.lr=1.4e-3'],
    DETECTOR: ['train_dataloader.batch_size=8', 'optim_wrapper.optimizer.lr=1e-3'],
}
TITLES = {
    'classifier': 'datpp-nano learns to classify the crops of objects',
    'pretrained': 'Mask R-CNN, with that backbone',
    'scratch': 'Mask R-CNN, the same from scratch',
}
LANES = [['classifier', 'pretrained'], ['scratch']]
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

    def tell_done(self, title):
        say(f'{title}: done before, in {self.state["seconds"]:.0f} s')

    def do(self, title, run):
        """The result, of `run(self)` unless it is there."""
        if self.done:
            self.tell_done(title)
        else:
            say(title)
            self.save()
            self.save(run(self))
        return self.state['result']


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def versions() -> dict:
    found, distributions = {'python': platform.python_version()}, packages_distributions()
    for name in PACKAGES:  # the forks' distributions have other names than their packages
        for distribution in distributions.get(name, ())[:1]:
            found[name] = version(distribution)
    return found


def _end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: one that is killed leaves no training behind


def call(runs, on_line, on_end, threads: int):
    """Runs the commands {name: (command, log)} at once, every line into the log and to `on_line(name, line)`.

    One that ends well is followed by what `on_end(name)` returns; where one fails, the others are stopped.
    """
    lock, ended, running = threading.Lock(), queue.Queue(), {}

    def follow(name, log, process):
        last = ''
        with log.open('a') as file:
            for line in process.stdout:
                file.write(line)
                last = line.strip() or last
                with lock:
                    on_line(name, line)
        ended.put((name, log, process.wait(), last))

    def start(runs):
        for name, (command, log) in runs.items():
            running[name] = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                env=os.environ | dict(OMP_NUM_THREADS=str(threads)),
                preexec_fn=_end_with_parent if sys.platform == 'linux' else None,
            )
            threading.Thread(target=follow, args=(name, log, running[name]), daemon=True).start()

    try:
        start(runs)
        while running:
            name, log, status, last = ended.get()
            running.pop(name).stdout.close()
            if status:
                raise UserError(f'{last or f"exit status {status}"} (the log is {log}; run it again to go on)')
            start(on_end(name))
    finally:
        for process in running.values():
            process.terminate()


def train(lanes, make_step, test, root):
    """Trains what the lanes name, one after the other, the lanes side by side; `make_step(name)` gives the step.

    `test(name)` is called after each, while the other lanes go on.

    A thread for each of them, or its share of the cores: models as small as these gain little from a second one.
    """
    cores = usable_cores()
    lanes = [list(lane) for lane in (lanes if cores >= len(lanes) else [chain(*lanes)])]
    lane_of = {name: lane for lane in lanes for name in lane}
    steps, shown = {}, {}

    def next_of(lane):
        while lane:
            name = lane.pop(0)
            step = steps[name] = make_step(name)
            if not step.done:
                say(TITLES[name])
                step.save()
                shown[name] = time.monotonic()
                asked = step.state['asked']
                command = sys.executable, '-W', 'ignore', root / 'tools/train.py'
                command += root / f'configs/shapes/{asked["config"]}.py', '--work-dir', step.folder, '--resume'
                return {name: ((*command, '--seed', 0, '--cfg-options', *asked['options']), step.folder / 'train.log')}
            step.tell_done(TITLES[name])
            test(name)
        return {}

    def on_line(name, line):
        text = None
        if progress := PROGRESS.search(line):
            steps[name].save()
            epoch, at, of, eta, loss = progress.groups()
            if time.monotonic() - shown[name] > 10 or at == of:
                shown[name] = time.monotonic()
                text = f'epoch {epoch}, {at} of {of}, loss {float(loss):.2f}, {eta} left'
        elif 'Epoch(val)' in line:
            found = {key: re.search(rf'{key}: (\S+)', line) for key in SHOWN}
            text = ', '.join(f'held out: {key} {match[1]}' for key, match in found.items() if match)
        if text:
            print(f'   {name}: {text}', flush=True)

    def on_end(name):
        checkpoint = str(latest_checkpoint(steps[name].folder))
        steps[name].save(dict(checkpoint=checkpoint, versions=versions()))
        test(name)
        return next_of(lane_of[name])

    runs = {name: run for lane in lanes for name, run in next_of(lane).items()}
    call(runs, on_line, on_end, threads=max(1, cores // len(lanes)))


def evaluate(config, checkpoint, options, root):
    """A step that tests on the held-out scenes and keeps the predictions."""

    def run(step):
        from ..test import test

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
    import torch
    from mmengine.device import get_device

    from ...datasets import ensure_shapes

    torch.set_num_threads(max(1, usable_cores() // len(LANES)))  # it tests while the other lane trains
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

    options = {config: config_options(config, data_root, make, epochs, device) for config in (CLASSIFIER, DETECTOR)}

    def make_step(name):
        config = CLASSIFIER if name == 'classifier' else DETECTOR
        given = list(options[config])
        if name == 'pretrained':
            given.append(f'model.backbone.init_cfg.checkpoint={steps["classifier"].state["result"]["checkpoint"]}')
        steps[name] = Step(work_dir / name, config=config, options=given)
        return steps[name]

    def test(name):
        config, checkpoint = steps[name].state['asked']['config'], steps[name].state['result']['checkpoint']
        step = steps[f'test_{name}'] = Step(work_dir / name / 'test', checkpoint=checkpoint)
        step.do(f'{name}: results on what was held out', evaluate(config, checkpoint, options[config], root))

    train(LANES, make_step, test, root)
    summary = report(work_dir, data_root, {name: step.state for name, step in steps.items()}, device)
    print(ending(summary, work_dir, data_root, root))
    return summary


def report(work_dir, data_root, states, device) -> dict:
    """Pictures and summary.json."""
    from ..analyze import analyze
    from .pictures import draw_predictions

    start, detectors = time.monotonic(), ('pretrained', 'scratch')
    predictions = {name: work_dir / name / 'test/predictions.pkl' for name in detectors}
    draw_predictions(data_root, predictions, work_dir / 'predictions.png')
    keys = ('loss', *SHOWN[1:])
    analyze([work_dir / name for name in detectors], out_dir=work_dir, keys=keys, quiet=True)
    analyze([work_dir / 'classifier'], quiet=True)

    seconds = {name: state['seconds'] for name, state in states.items()}
    seconds['pictures'] = round(time.monotonic() - start, 1)
    lanes = [sum(seconds[name] + seconds[f'test_{name}'] for name in lane) for lane in LANES]
    at_once = min(lanes) if usable_cores() > 1 else 0
    results = {name: states[f'test_{name}']['result'] for name in ('classifier', *detectors)}
    summary = {
        **{ours: results['pretrained'][f'coco/{theirs}'] for ours, theirs in FIGURES.items()},
        **{f'scratch_{ours}': results['scratch'][f'coco/{theirs}'] for ours, theirs in FIGURES.items()},
        'crop_accuracy': round(results['classifier'][SHOWN[0]] / 100, 3),
        'seconds': round(sum(seconds.values()) - at_once, 1),
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
    return f'{device}, {usable_cores()} cores' if device == 'cpu' else device


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
