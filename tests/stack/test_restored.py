"""`tradecopier restored`: an operator declares that a backup was restored."""

import asyncio
from typing import TYPE_CHECKING

import psycopg
import pytest

from agent.cli import run

if TYPE_CHECKING:
    from agent.stack.stack import Stack


@pytest.fixture
def environment(stack: "Stack", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADECOPIER_URL", stack.url)
    monkeypatch.setenv("TRADECOPIER_SECRET_KEY", stack.secret_key)


@pytest.mark.usefixtures("environment")
async def test_it_does_what_a_witness_would_have_made_happen_and_prints_it(
    stack: "Stack", capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(run, ["restored"]) == 0
    printed = capsys.readouterr().out
    with psycopg.connect(stack.dsn) as connection:
        row = connection.execute(
            "select g.generation, s.last_value, t.state, t.reason from private.database_generation g,"
            " public.trade_execution_queue_id_seq s, public.trading_switch t"
        ).fetchone()
    assert row is not None
    generation, number, state, reason = row
    assert (generation, state, reason) == (2, "monitor", "restored")
    assert "generation: 2" in printed
    assert f"after {number}" in printed
    assert "trading: monitor" in printed
    assert await asyncio.to_thread(run, ["restored", "--highest", "70000000"]) == 0
    assert "after 71000000" in capsys.readouterr().out


@pytest.mark.usefixtures("environment")
async def test_another_key_is_refused_in_one_line(
    stack: "Stack", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRADECOPIER_SECRET_KEY", stack.publishable_key)
    assert await asyncio.to_thread(run, ["restored"]) == 1
    error = capsys.readouterr().err
    assert "TC151" in error
    assert stack.publishable_key not in error


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TRADECOPIER_SECRET_KEY", raising=False)
    monkeypatch.delenv("TRADECOPIER_URL", raising=False)
    assert run(["restored"]) == 1
    assert "TRADECOPIER_SECRET_KEY" in capsys.readouterr().err


@pytest.mark.parametrize("highest", ["-1", "x", "1000000000000001"])
def test_a_senseless_number_is_refused_before_anything_is_sent(highest: str) -> None:
    assert run(["restored", "--highest", highest]) == 2
