# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The notebook runs, and what it shows is HTML."""

import ast
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_stack

pytest.importorskip('mmengine')
pytest.importorskip('cv2')

NOTEBOOK = Path(__file__).parents[2] / 'examples' / 'attention.ipynb'


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text())['cells']
    names, shown = {}, []
    for cell in cells:
        assert not cell.get('outputs'), 'outputs are not kept in the repository'
        if cell['cell_type'] != 'code':
            continue
        tree = ast.parse(''.join(cell['source']))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, 'cell', 'exec'), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), 'cell', 'eval'), names)
            shown.append(value._repr_html_() if hasattr(value, '_repr_html_') else str(value))
    assert sum(text.startswith('<img alt=') for text in shown) == 1
    assert sum(text.startswith('<iframe ') for text in shown) == 1
    assert (tmp_path / 'attention.pdf').read_bytes().startswith(b'%PDF')
