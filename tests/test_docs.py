# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What the pages tell a reader to type exists: Python runs, tools take the options, links and names lead somewhere."""

import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_stack

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for pattern in ('*.md', 'docs/**/*.md', 'configs/**/*.md') for path in ROOT.glob(pattern))
FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.MULTILINE | re.DOTALL)
PLACEHOLDER = re.compile(r'(?:\b|_)(NAME|FOLDER)\b')  # what the reader puts a name of their own for
each_page = pytest.mark.parametrize('page', PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text()) if language in languages]


PYTHON = [
    pytest.param(page, body, id=f'{page.relative_to(ROOT)}-{n}')
    for page in PAGES
    for n, body in enumerate(blocks(page, 'python'))
]


@pytest.mark.parametrize(('page', 'body'), PYTHON)
def test_python_of_the_pages_runs(page, body):
    names = {}
    exec(compile(body, page, 'exec'), names)
    if base := names.get('_base_'):
        assert any((folder / base).is_file() for folder in (ROOT, page.parent)), f'{base} is not there'


def commands(page: Path) -> list[list[str]]:
    """The words of each command in the shell blocks of a page, without comments."""
    text = '\n'.join(blocks(page, '', 'bash')).replace('\\\n', ' ')
    lines = [re.sub(r'(^|\s)#.*', '', line) for line in text.splitlines()]
    return [part.split() for line in lines for part in re.split(r'&&|;', line) if part.strip()]


@cache
def help_of(*command: str) -> str:
    done = subprocess.run([sys.executable, *command, '--help'], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def known_options(tool: str) -> str:
    """What a tool says about its options. A shell script passes options on to the Python tools that it names."""
    if tool.endswith('.py'):
        return help_of(tool)
    named = {f'tools/{name}' for name in re.findall(r'\w+\.py', (ROOT / tool).read_text())}
    return ''.join(help_of(name) for name in named if (ROOT / name).is_file())


@each_page
def test_commands_of_the_pages_name_tools_and_their_options(page):
    for words in commands(page):
        given = [word.strip('\'"[]').split('=')[0] for word in words if word.lstrip('\'"[').startswith('--')]
        tools = [word for word in words if re.fullmatch(r'tools/\w+\.(py|sh)', word)]
        modules = re.findall(r'-m (dat_mm\.\S+)', ' '.join(words))
        for tool in tools:
            assert (ROOT / tool).is_file(), f'{tool} is not there: {" ".join(words)}'
        known = ''.join([*map(known_options, tools), *(help_of('-m', module) for module in modules)])
        for option in given if tools or modules else ():
            assert re.search(rf'{option}(?![\w-])', known), f'{option} is no option of it: {" ".join(words)}'


def test_every_tool_is_on_a_page():
    text = ''.join(page.read_text() for page in PAGES)
    assert not [tool.stem for tool in sorted((ROOT / 'tools').glob('*.py')) if not re.search(rf'\b{tool.stem}\b', text)]


@each_page
def test_targets_of_make_exist(page):
    targets = set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    for words in commands(page):
        if 'make' in words:
            named = [word for word in words[words.index('make') + 1 :] if re.fullmatch('[a-z]+', word)]
            assert set(named) <= targets, ' '.join(words)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r'^#+ (.*)', FENCE.sub('', page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', FENCE.sub('', page.read_text())):
        if '://' in link:
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f'{link} is not there'
        assert not anchor or anchor in anchors(target), f'{target.name} has no heading #{anchor}'


@each_page
def test_files_that_the_pages_name_exist(page):
    folders = 'configs|tools|dat_mm|docs|requirements|tests'
    for name in re.findall(rf'(?<![\w/-])(?:{folders})/[\w./-]+\.(?:py|sh|md|txt)\b', page.read_text()):
        assert PLACEHOLDER.search(name) or (ROOT / name).is_file() or (page.parent / name).is_file(), name


def resolves(name: str) -> bool:
    """Whether a dotted name is an object of the package, or what an OpenMMLab config calls so."""
    from dat_mm import registry

    try:
        pkgutil.resolve_name(name)
        return True
    except (AttributeError, ImportError):
        pass
    registries = (x for x in vars(registry).values() if isinstance(x, registry.parents.Registry))
    return any(x.get(name) is not None for x in registries)


@each_page
def test_names_of_the_package_exist(page):
    names = set(re.findall(r'\bdat_mm(?:\.\w+)+', page.read_text())) - {'dat_mm.json'}
    missing = [name for name in sorted(names) if not (name.endswith('_') or PLACEHOLDER.search(name) or resolves(name))]
    assert not missing
