# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The HTML around what a command tells: document.html, which has the looks of reports and galleries."""

from html import escape
from importlib.resources import files
from pathlib import Path


def write_document(path: Path, title: str, body: str) -> None:
    """Writes a page with a title above a body of HTML."""
    text = files(__package__).joinpath('document.html').read_text(encoding='utf-8')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace('<!--TITLE-->', escape(title)).replace('<!--BODY-->', body), encoding='utf-8')
