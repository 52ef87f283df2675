# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import errno
import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest

from dat_mm.commands import cli
from dat_mm.errors import UserError


@pytest.fixture
def fails_with(monkeypatch):
    """Makes a module `room.made_up` whose function raises an error; returns how to call it."""

    def call(error, **options):
        def made_up(value):
            raise error

        monkeypatch.setitem(sys.modules, 'room', SimpleNamespace(__path__=[]))
        monkeypatch.setitem(sys.modules, 'room.made_up', SimpleNamespace(made_up=made_up))
        return cli.call('room.made_up', Namespace(value=1), **options)

    return call


@pytest.mark.parametrize(
    ('error', 'options'),
    [
        (UserError('the rule'), {}),
        (ValueError('the rule'), dict(errors=(OSError, ValueError))),
        (FileNotFoundError('the rule'), dict(errors=(OSError, ValueError))),
    ],
)
def test_what_the_user_can_put_right_is_one_line(fails_with, error, options):
    with pytest.raises(SystemExit) as caught:
        fails_with(error, **options)
    assert caught.value.code == 'error: the rule'  # Python prints it on stderr and exits with 1


@pytest.mark.parametrize('error', [ValueError('the rule'), PermissionError(errno.EACCES, 'the rule')], ids=repr)
def test_any_other_error_keeps_its_traceback(error, fails_with):
    with pytest.raises(type(error), match='the rule'):
        fails_with(error)


def test_a_full_disk_is_one_line(fails_with):
    with pytest.raises(SystemExit) as caught:
        fails_with(OSError(errno.ENOSPC, 'No space left on device', 'a.log'))
    assert (
        caught.value.code
        == f"error: a file could not be written: [Errno {errno.ENOSPC}] No space left on device: 'a.log'"
    )


def test_call_returns_what_the_function_returns(monkeypatch):
    monkeypatch.setitem(sys.modules, 'made_up', SimpleNamespace(made_up=lambda value: 2 * value))
    assert cli.call('made_up', Namespace(value=3)) == 6


def test_cfg_options_add_up():
    parser = cli.parser('A tool.')
    cli.add_cfg_options(parser, example='a=1')
    assert 'e.g. a=1' in parser.format_help()
    assert parser.parse_args(['--cfg-options', 'a=1', 'b=2', '--cfg-options', 'c=3']).cfg_options == [
        'a=1',
        'b=2',
        'c=3',
    ]
    assert parser.parse_args([]).cfg_options == []
