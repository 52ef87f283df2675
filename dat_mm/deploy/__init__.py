# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Models as files that other runtimes run, and such files in the place of a model.

A network (networks.py) is a model as tensors in and tensors out. graph.py writes it as ONNX, precision.py makes the
file smaller, and runtimes.py runs it. Nothing here needs a toolbox but what wraps the models of one.
"""
