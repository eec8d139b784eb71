"""What a command shows while it waits."""

import asyncio
import io

import pytest
from rich.console import Console

from agent.testbed import waiting
from agent.testbed.waiting import Steps, wait_for


async def test_a_wait_ends_with_what_was_found_and_says_nothing_if_it_is_short(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = iter([None, None, "found"])

    async def look() -> str | None:
        return next(seen)

    assert await wait_for("it is there", look, 30) == "found"
    assert capsys.readouterr().err == ""


async def test_a_wait_has_a_limit() -> None:
    async def look() -> str | None:
        return None

    assert await wait_for("nothing", look, 0) is None


async def test_a_long_wait_says_what_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(waiting, "QUIET_S", 0)
    said: list[str] = []

    async def look() -> str | None:
        said.append(capsys.readouterr().err)
        return "shown" if any(said) else None

    async with asyncio.timeout(30):
        await wait_for("master is connected", look, 60)
    assert "".join(said) == "… waiting until master is connected (at most 60 s)\n"


def test_steps_are_lines_with_their_times() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with Steps(terminal, total=2) as begin:
        begin("starting one")
        begin("starting two")
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "✓ starting one  0.0 s" in shown
    assert "✓ starting two  0.0 s" in shown


def test_without_a_terminal_a_line_says_what_begins() -> None:
    pipe = Console(file=io.StringIO(), force_terminal=False, width=20)
    with Steps(pipe) as begin:
        begin("starting something with a long name")
    assert pipe.file.getvalue() == "… starting something with a long name\n"  # type: ignore[attr-defined]


def test_a_step_that_failed_is_not_called_done() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)

    def fail() -> None:
        with Steps(terminal) as begin:
            begin("starting one")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "✓" not in terminal.file.getvalue()  # type: ignore[attr-defined]
