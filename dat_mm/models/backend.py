# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The backend of a model's ops, set on the finished model."""

from torch import nn

from ..ops.backends import check_backend


class set_backend:
    """Sets the backend of all ops of a model, for good or, in a `with` statement, for a while.

    An op without a backend of that name goes on choosing for itself. Every module with an attribute `backend` is set.

        set_backend(model, 'reference')              # from now on
        with set_backend(model, 'reference'): ...    # each module has its own backend again afterwards
    """

    def __init__(self, model: nn.Module, backend: str):
        check_backend(backend)
        self.before = [(module, module.backend) for module in model.modules() if hasattr(module, 'backend')]
        for module, _ in self.before:
            module.backend = backend

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for module, backend in self.before:
            module.backend = backend
