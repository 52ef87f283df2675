# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The quickstart: Shapes, a classifier of its crops, and Mask R-CNN with that backbone and from scratch.

Each step has a folder and in it a step.json (steps.py). A finished step is not done again; a training that was
stopped goes on from its last checkpoint.
"""

import json
import os
import platform
import socket
import sys
import time
from importlib.metadata import packages_distributions, version
from pathlib import Path

from ...errors import UserError
from ..screen import Progress, Screen
from ..steps import Step, run_all
from . import job

CLASSIFIER = 'datpp-nano_1xb48-short_shapes'
DETECTOR = 'mask-rcnn_datpp-nano_fpn_1xb8-short_shapes'
CONFIGS = dict(classifier=CLASSIFIER, pretrained=DETECTOR, scratch=DETECTOR)
DETECTORS = ('pretrained', 'scratch')
PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'numpy', 'dat_mm')
FIGURES = dict(box_AP50='bbox_mAP_50', mask_AP50='segm_mAP_50', box_AP='bbox_mAP', mask_AP='segm_mAP')
ACCURACY = 'accuracy/top1'


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def torch_version() -> tuple[int, int]:
    return tuple(int(part) for part in version('torch').split('.')[:2])


def versions() -> dict:
    found, distributions = {'python': platform.python_version()}, packages_distributions()
    for name in PACKAGES:  # the forks' distributions have other names than their packages
        for distribution in distributions.get(name, ())[:1]:
            found[name] = version(distribution)
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


class Quickstart:
    """A run in `work_dir`, on the data in `data_root`; `root` holds configs/ and tools/."""

    def __init__(self, root, work_dir, data_root, scenes, epochs):
        self.root, self.work_dir, self.data_root = root, work_dir, data_root
        self.make = dict(zip(('num_train', 'num_val'), scenes, strict=True)) if scenes else {}
        self.epochs = dict(zip((CLASSIFIER, DETECTOR), epochs, strict=True)) if epochs else {}
        self.screen, self.steps = Screen(), {}

    def run(self) -> dict:
        """Makes, trains, evaluates, draws and tells; returns what it leaves in summary.json."""
        self.screen.say(f'Quickstart on {usable_cores()} cores; pictures, logs and checkpoints go to {self.work_dir}')
        self.make_shapes()
        from mmengine.device import get_device

        self.device = get_device()
        self.train(['classifier'])
        one_by_one = self.device == 'cpu' and usable_cores() == 1
        for names in [[name] for name in DETECTORS] if one_by_one else [DETECTORS]:
            self.train(names)
        self.make_pages()
        summary = self.report(side_by_side=not one_by_one)
        self.screen.end(ending(summary, self.work_dir, self.data_root, self.root))
        return summary

    def make_shapes(self):
        from ...datasets import ensure_shapes

        step = self.steps['shapes'] = Step(self.work_dir / 'shapes', data=str(self.data_root), **self.make)
        try:
            if not step.done:
                self.screen.say(f'Shapes: scenes are drawn in {self.data_root}')
                step.save()
            ensure_shapes(self.data_root, **self.make)  # also where it was done before: the folder may be gone since
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from error
        if step.done:
            self.tell_done('Shapes', step)
        else:
            step.save(str(self.data_root))

    def tell_done(self, name, *steps):
        self.screen.say(f'{name}: done before, in {sum(step.state["seconds"] for step in steps):.0f} s')

    def options(self, config) -> tuple[list[str], list[str]]:
        """What differs from the shipped config, and what differs in training alone."""
        options = [f'data_root={self.data_root}']
        for phase in ('train', 'val', 'test'):
            options += [f'{phase}_dataloader.dataset.make.{key}={value}' for key, value in self.make.items()]
        training = ['default_hooks.logger.interval=20']
        if config in self.epochs:
            count = self.epochs[config]
            training += [f'param_scheduler.1.{key}={count}' for key in ('end', 'T_max')]
            training += [f'train_cfg.max_epochs={count}']
        if self.device == 'cpu':  # loading costs little beside training, and workers would compete for the cores
            options += [f'{phase}_dataloader.num_workers=0' for phase in ('train', 'val', 'test')]
            if torch_version() >= (2, 4):
                training.append('optim_wrapper.optimizer.fused=True')
        return options, training

    def count_epochs(self, config) -> int:
        from mmengine.config import Config

        return self.epochs.get(config) or Config.fromfile(self.config_file(config)).train_cfg.max_epochs

    def config_file(self, config) -> Path:
        return self.root / f'configs/shapes/{config}.py'

    def train(self, names):
        """Trains and tests these models side by side, each with its share of the cores."""
        commands = {}
        for name in names:
            commands.update(self.prepare(name, max(1, usable_cores() // len(names))))
        if not commands:
            return
        for name in commands:
            if name in names and not self.steps[name].done:
                self.screen.say(self.title(name))
        progress = Progress(self.screen, {name: self.count_epochs(CONFIGS[name]) for name in commands if name in names})

        def on_line(name, line):
            if name not in names:
                return  # the second process of a training: the first one tells
            step, test = self.steps[name], self.steps[f'test_{name}']
            if progress.read(name, line):
                step.save()
            elif event := job.heard(line):
                if event[0] == 'trained':
                    step.save(dict(checkpoint=event[1], versions=versions()))
                    test.start()
                else:
                    test.save(event[1])
                    self.on_tested(name)

        run_all(commands, on_line)

    def prepare(self, name, cores) -> dict:
        """The commands of the processes that train and test a model, none where that is done."""
        config = CONFIGS[name]
        options, training = self.options(config)
        if name == 'pretrained':
            training.append(f'model.backbone.init_cfg.checkpoint={self.steps["classifier"].result["checkpoint"]}')
        step = self.steps[name] = Step(self.work_dir / name, config=config, options=[*options, *training])
        test = self.steps[f'test_{name}'] = Step(step.folder / 'test', model=name)
        if test.done and step.done:
            self.tell_done(name, step, test)
            return {}
        step.save(step.result)
        asked = dict(config=self.config_file(config), folder=step.folder, options=options, train_options=training)
        asked['checkpoint'] = step.result and step.result['checkpoint']
        log = step.folder / 'log.txt'
        # Models as small as these gain little from a second thread, but much from a second process with half a batch.
        if name == 'classifier' and self.device == 'cpu' and cores > 1 and not step.done:
            from mmengine.config import Config

            batch = Config.fromfile(self.config_file(config)).train_dataloader.batch_size
            asked['train_options'] = [*training, f'train_dataloader.batch_size={batch // 2}']
            place = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
            place['OMP_NUM_THREADS'] = str(cores // 2)
            return {
                name if rank == 0 else f'{name} {rank}': (
                    job.command(**asked, launcher='pytorch', rank=rank),
                    dict(place, RANK=str(rank), LOCAL_RANK=str(rank)),
                    log if rank == 0 else step.folder / f'log_{rank}.txt',
                )
                for rank in range(2)
            }
        return {name: (job.command(**asked), dict(OMP_NUM_THREADS=str(cores)), log)}

    def title(self, name) -> str:
        return {
            'classifier': 'classifier: DAT++-nano learns to name crops of single objects',
            'pretrained': 'pretrained: Mask R-CNN learns to find the objects, with the backbone of the classifier',
            'scratch': 'scratch: the same Mask R-CNN, from random weights',
        }[name]

    def on_tested(self, name):
        """Tells what a model reached; the classifier's answers are something to look at while the detectors train."""
        result = self.steps[f'test_{name}'].result
        if name == 'classifier':
            from .pictures import draw_crops

            picture = self.work_dir / 'crops.png'
            draw_crops(self.predictions(name), picture)
            self.screen.say(f'classifier: names {result[ACCURACY]:.0f} % of the held-out crops right; see {picture}')

    def predictions(self, name) -> Path:
        return self.work_dir / name / 'test/predictions.pkl'

    def report(self, side_by_side) -> dict:
        """Pictures and summary.json."""
        from ..analyze import analyze
        from .pictures import draw_predictions

        start = time.monotonic()
        predictions = {name: self.predictions(name) for name in DETECTORS}
        draw_predictions(self.data_root, predictions, self.work_dir / 'predictions.png')
        analyze([self.work_dir / name for name in DETECTORS], out_dir=self.work_dir, keys=['loss'], quiet=True)
        analyze([self.work_dir / 'classifier'], quiet=True)

        seconds = {name: step.state['seconds'] for name, step in self.steps.items()}
        seconds['pictures'] = round(time.monotonic() - start, 1)
        at_once = min(seconds[name] + seconds[f'test_{name}'] for name in DETECTORS) if side_by_side else 0
        results = {name: self.steps[f'test_{name}'].result for name in CONFIGS}
        summary = {
            **{ours: results['pretrained'][f'coco/{theirs}'] for ours, theirs in FIGURES.items()},
            **{f'scratch_{ours}': results['scratch'][f'coco/{theirs}'] for ours, theirs in FIGURES.items()},
            'crop_accuracy': round(results['classifier'][ACCURACY] / 100, 3),
            'seconds': round(sum(seconds.values()) - at_once, 1),
            'seconds_by_step': seconds,
            'device': device_name(self.device),
            'versions': self.steps['pretrained'].result['versions'],
        }
        (self.work_dir / 'summary.json').write_text(json.dumps(summary, indent=1) + '\n')
        return summary

    def make_pages(self):
        """The page of what the trained detector looks at, and the report of both detectors."""
        tools, folder = self.root / 'tools', self.work_dir / 'pretrained'
        picture = sorted((self.data_root / 'images/val').iterdir())[:2][-1]
        commands = {
            'attention': [
                *(tools / 'visualize_attention.py', picture, folder / f'{DETECTOR}.py'),
                *(self.steps['pretrained'].result['checkpoint'], '--out', self.work_dir / 'attention.png'),
                *('--html', self.work_dir / 'attention.html'),
            ],
            'report': [
                *(tools / 'report.py', *(self.work_dir / name for name in DETECTORS)),
                *('--out', self.work_dir / 'report.html'),
            ],
        }
        made_from = {name: self.steps[name].result['checkpoint'] for name in DETECTORS}
        step = self.steps['pages'] = Step(self.work_dir / 'pages', **made_from)
        if step.done and all((self.work_dir / f'{name}.html').is_file() for name in commands):
            return
        self.screen.say('what the detector looks at, and a report of both')
        step.save()
        place = dict(OMP_NUM_THREADS=str(max(1, usable_cores() // 2)))
        run_all(
            {
                name: ([sys.executable, '-W', 'ignore', *map(str, line)], place, step.folder / f'{name}.txt')
                for name, line in commands.items()
            },
            lambda name, line: None,
        )
        step.save(list(commands))


def quickstart(root, *, work_dir='work_dirs/quickstart', data_root=None, scenes=None, epochs=None):
    """Runs the quickstart and returns what it leaves in summary.json.

    `scenes` and `epochs`, pairs of (train, val) and (classifier, detector), are for trying it out: without them
    everything is as shipped.
    """
    data_root = Path(data_root or Path(os.environ.get('DAT_MM_DATA', 'data')) / 'shapes')
    return Quickstart(Path(root), Path(work_dir), data_root, scenes, epochs).run()


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
    predictions.png  held-out scenes: the truth, and what the two models found
    attention.html, report.html   what the detector looks at, to click on; both runs side by side, with curves
    losses.png, summary.json; pretrained/ and scratch/ with checkpoints, logs, configs; remove all to start over
  Predictions for pictures of your choice, and a page that makes them in a browser, from a camera too:
    S={work_dir}/pretrained; C=$S/{DETECTOR}.py
    python {tools}/infer.py {data_root}/images/val $C $(cat $S/last_checkpoint)
    python {tools}/export.py $C $(cat $S/last_checkpoint) $S/model.onnx --page $S/live.html
  With COCO in data/coco (docs/data.md) and a checkpoint of the authors (docs/checkpoints.md):
    python {tools}/train.py {configs}/coco/mask-rcnn_datpp-tiny_fpn_32xb2-ms-1x_coco.py \\
        --auto-scale-lr --cfg-options model.backbone.init_cfg.checkpoint=dat_pp_tiny_in1k_224.pth"""
