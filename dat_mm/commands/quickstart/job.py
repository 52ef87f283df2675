# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""One model of the quickstart in a process of its own: trained, then tested on what is held out.

One process does both, since importing the toolbox takes as long as many iterations of training.
"""

import json
import sys
from pathlib import Path

from ...errors import UserError

TELL = 'quickstart: '


def command(**job) -> list[str]:
    """The command line that runs a job; the arguments are those of `run`."""
    return [sys.executable, '-W', 'ignore', '-m', __name__, json.dumps(job, default=str)]


def heard(line: str):
    """The event and its result that a line of a job's output tells, or None."""
    return json.loads(line.removeprefix(TELL)) if line.startswith(TELL) else None


def _tell(event, result):
    print(TELL + json.dumps([event, result]), flush=True)


def run(config, folder, options, train_options, checkpoint, launcher='none', rank=0) -> None:
    """Trains unless there is a `checkpoint`, and tests; tells 'trained' with the checkpoint, 'tested' with the metrics.

    `train_options` are those that testing does without. Where several processes train, the first one tests.
    """
    from ...engine.checkpoints import latest_checkpoint

    if checkpoint is None:
        from ..train import train

        settings = dict(work_dir=folder, resume='auto', no_validate=True, seed=0, launcher=launcher)
        train(config, cfg_options=[*options, *train_options], **settings)
        checkpoint = str(latest_checkpoint(folder))
        if rank == 0:
            _tell('trained', checkpoint)
    if rank == 0:
        from ..test import test

        work_dir = Path(folder, 'test')
        metrics = test(config, checkpoint, work_dir=work_dir, out=work_dir / 'predictions.pkl', cfg_options=options)
        _tell('tested', {key: float(value) for key, value in metrics.items()})


if __name__ == '__main__':
    try:
        run(**json.loads(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
