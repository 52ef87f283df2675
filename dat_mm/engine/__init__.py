# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What OpenMMLab calls the engine: the runner, its random seeds, optimizer constructors, checkpoints of training."""
