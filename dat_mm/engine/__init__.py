# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The engine, in OpenMMLab's sense: the runner, its random seeds, optimizer constructors, training checkpoints."""
