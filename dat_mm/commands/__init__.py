# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""This room has one module for each tool, under the tool's name, and what the tools share."""
