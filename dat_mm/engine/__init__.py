# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Training, testing and what goes with them, for the three toolboxes through mmengine's Runner."""
