# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What several tests read from the log of a run."""

import json
from pathlib import Path


def losses(work_dir):
    """{step: (loss, gradient norm)} with all digits. Where a run has several parts, the last one counts."""
    found = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if 'loss' in entry:
                found[entry['step']] = entry['loss'], entry.get('grad_norm')
    return found


def log_text(work_dir):
    """The text logs of all starts of a run."""
    return '\n'.join(path.read_text() for path in sorted(Path(work_dir).glob('*/*.log')))
