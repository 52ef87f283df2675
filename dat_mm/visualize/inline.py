# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Pictures inside of HTML, so that a page is one file."""

import base64
import io
from html import escape


def source_of(write, kind: str) -> str:
    """The address that has a picture in it; `write` is called with a file and writes the picture as PNG or JPEG."""
    buffer = io.BytesIO()
    write(buffer)
    return f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'


def img(source: str, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="{source}">'
