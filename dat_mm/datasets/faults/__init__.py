# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What can be wrong with the files of a data set: the rules that tools/check_data.py and training share.

A rule yields a Fault for all that it finds. No content of a file makes a rule raise.
"""

from .coco import UNNOTICED, coco_faults, instance_fault
from .fault import Fault, shown
from .folders import folder_faults, list_faults
from .images import image_faults
from .maps import Labels, map_faults
from .panoptic import panoptic_faults, segment_faults

__all__ = [
    'UNNOTICED',
    'Fault',
    'Labels',
    'coco_faults',
    'folder_faults',
    'image_faults',
    'instance_fault',
    'list_faults',
    'map_faults',
    'panoptic_faults',
    'segment_faults',
    'shown',
]
