# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The backbone under the name that configs of the toolboxes have for it. The registry imports this on first use."""

from ..registry import MODELS
from .dat import DAT

MODELS.register_module(module=DAT)
