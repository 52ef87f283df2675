# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The interactive page: one file with the picture, all layers, and the script that computes attention from them.

The whole attention of a layer would be gigabytes. The page has queries, keys, points and tables, in few bits, and makes
the attention of a query when it is chosen. attention.js does that, page.js is what else the page does, page.css its
looks, and page.html the frame of all.
"""

from .build import make_page

__all__ = ['make_page']
