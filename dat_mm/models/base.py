# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What the backbone takes from mmengine, and what stands in for it where mmengine is not installed."""

import logging
from importlib.util import find_spec

from torch import nn

if find_spec('mmengine') is not None:  # one that is there and broken says so itself
    from mmengine.logging import print_log
    from mmengine.model import BaseModule
else:

    class BaseModule(nn.Module):
        """A module that remembers what to initialise it from."""

        def __init__(self, init_cfg=None):
            super().__init__()
            self.init_cfg = init_cfg

        def init_weights(self) -> None:
            """Leaves the weights as they were made. Other ways to initialise them are mmengine's."""
            if self.init_cfg:
                raise ValueError(f'init_cfg={self.init_cfg!r} needs mmengine, which is not installed')

    def print_log(text: str, logger=None) -> None:
        """Logs a line. Which logger is mmengine's business."""
        logging.getLogger('dat_mm').info(text)


__all__ = ['BaseModule', 'print_log']
