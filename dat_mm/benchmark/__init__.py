# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The modules of the tools that measure: benchmark times models, measure_backends ops, compile_kernels reads code."""
