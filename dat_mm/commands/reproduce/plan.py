# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What a reproduction would take, before anybody spends it: iterations, images, hours."""


def show(work) -> None: ...
