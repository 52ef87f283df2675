# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/benchmark.py does: cases timed side by side, each in a process of its own, and the tables of them."""
