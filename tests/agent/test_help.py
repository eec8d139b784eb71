"""`--help` of every command: complete, at the width of any terminal."""

import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from agent.cli import group


def commands(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from commands(found, *path, name)


EVERY = dict(commands(group))


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("path", [path for path in EVERY if path], ids=" ".join)
def test_the_list_of_commands_cuts_no_sentence(path: tuple[str, ...]) -> None:
    listed = words(CliRunner().invoke(group, [*path[:-1], "--help"], terminal_width=80).output)
    whole = words(EVERY[path].help or "").split("\b")[0]
    first = re.split(r"(?<=\.)\s", whole)[0]
    assert first
    assert f"{path[-1]} {first.rstrip('.')}" in listed


@pytest.mark.parametrize("path", list(EVERY), ids=lambda path: " ".join(path) or "tradecopier")
@pytest.mark.parametrize("width", [80, 200])
def test_help_fits_the_terminal(path: tuple[str, ...], width: int) -> None:
    answer = CliRunner().invoke(group, [*path, "--help"], terminal_width=width, max_content_width=width)
    assert answer.exit_code == 0
    assert max(map(len, answer.output.splitlines())) <= width
    assert "..." not in answer.output.replace("[ARGS]...", "").replace("FILES...", "").replace("COMMANDS...", "")
