# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Counts of parameters that hold for both stacks."""


def parameters_upstream(model) -> int:
    """How many parameters a model has upstream. In the OneDL fork a layer of DINO takes twice as many numbers."""
    count = sum(parameter.numel() for parameter in model.parameters())
    if type(model).__name__ == 'DINO':
        out_size, in_size = model.decoder.ref_point_head.layers[0].weight.shape
        count -= out_size * (in_size - 2 * out_size)
    return count
