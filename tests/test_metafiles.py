# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The index of the models, the tables of results and the links of all pages."""

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_stack

yaml = pytest.importorskip('yaml')

ROOT = Path(__file__).resolve().parents[1]
LEAVES = {path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/**/*.py') if '_base_' not in path.parts}
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
FILES = {name: yaml.safe_load((ROOT / name).read_text()) for name in INDEX['Import']}
MODELS = [model for content in FILES.values() for model in content['Models']]
COLLECTIONS = {found['Name'] for content in FILES.values() for found in content.get('Collections', ())}


def pages():
    """The Markdown files of the repository, not those of environments or runs inside its folder."""
    listed = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '*.md'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    names = listed.stdout.split() if listed.returncode == 0 else []
    return [ROOT / name for name in names] or [*ROOT.glob('*.md'), *ROOT.glob('*s/**/*.md')]


def test_index_is_valid():
    modelindex = pytest.importorskip('modelindex')
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert not index.check(silent=True)
    assert len(index.models) == len(LEAVES) > 80


def test_index_has_every_metafile():
    assert set(INDEX) == {'Import'}
    assert sorted(FILES) == sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/**/metafile.yml'))


def test_every_config_is_in_a_metafile_once():
    assert sorted(model['Config'] for model in MODELS) == sorted(LEAVES)
    for model in MODELS:
        assert model['Name'] == Path(model['Config']).stem
        assert model['In Collection'] in COLLECTIONS


def test_results_say_where_they_are_from():
    for model in MODELS:
        assert 'Weights' not in model, model['Name']  # none is published from here
        assert ('Results' in model) == ('Results From' in model), model['Name']
        for result in model.get('Results', ()):
            assert {'Task', 'Dataset', 'Metrics'} == set(result), model['Name']
            for metric, value in result['Metrics'].items():  # the PQ of things is 0 where the background alone is found
                assert 0 < value < 100 or (metric, value) == ('PQ things', 0), (model['Name'], metric)


@pytest.mark.parametrize('name', sorted(FILES))
def test_readme_has_every_config_and_stars_its_figures(name):
    folder = (ROOT / name).parent
    readme = folder / 'README.md' if (folder / 'README.md').exists() else folder.parent / 'README.md'
    text = readme.read_text()
    for model in FILES[name]['Models']:
        link = (ROOT / model['Config']).relative_to(readme.parent).as_posix()
        row = next((line for line in text.splitlines() if f'({link})' in line), None)
        assert row, f'{readme}: {link}'
        for result in model.get('Results', ()):
            main = next(iter(result['Metrics'].values()))
            if model['Results From'].startswith('tools/reproduce.py'):  # measured here: no star
                rows = [line for line in text.splitlines() if f'({link})' in line]
                assert any(f' {main:.2f}' in line for line in rows), f'{readme}: {main} of {link}'
                continue
            cells = [cell.strip() for cell in row.split('|') if '\\*' in cell]
            starred = [float(cell.partition('\\*')[0]) for cell in cells]
            assert any(abs(value - main) < 0.0051 for value in starred), f'{readme}: {main} of {link}'


def test_no_dead_link():
    found = pages()
    assert len(found) >= 5
    for page in found:
        text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
        for target in re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'(?:src|href)="([^"]+)"', text):
            path = target.partition('#')[0]
            if path and not re.match(r'[a-z]+:', path):
                assert (page.parent / path).exists(), f'{page.relative_to(ROOT)}: {target}'
