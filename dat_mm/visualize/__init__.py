# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What deformable attention looks at: recorded in a model's own forward, as numbers, figures and an interactive page.

with record(model) as recording:
    model(images)
show(recording, images)
"""

from .geometry import MapGrid, Placement
from .layer import Layer
from .record import Recording, record
from .view import Box, View, show

__all__ = ['Box', 'Layer', 'MapGrid', 'Placement', 'Recording', 'View', 'record', 'show']
