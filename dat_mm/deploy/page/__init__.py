# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The live page: an exported model that runs in a browser, on pictures that stay there.

It is one file, with the model, ONNX Runtime as WebAssembly and a few pictures inside. worker.js runs the model, live.js
is what else the page does, live.css its looks and live.html the frame of all. What it shows of attention comes from
attention.js of the interactive page.
"""

from .build import write_page

__all__ = ['write_page']
