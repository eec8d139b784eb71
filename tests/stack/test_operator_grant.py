"""`tradecopier operator grant` as a person runs it: shows who signed up, and asks for confirmation without a proof."""

import asyncio
import os
import pty
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from agent.command.operator import Project
from agent.failure import Failure
from agent.stack.stack import Stack

COMMAND = [sys.executable, "-c", "from agent.cli import main; main()", "operator", "grant"]


async def sign_up(stack: Stack, email: str) -> str:
    async with (
        aiohttp.ClientSession(headers={"apikey": stack.publishable_key}) as http,
        http.post(f"{stack.url}/auth/v1/signup", json={"email": email, "password": "correct horse"}) as response,
    ):
        assert response.status == 200, await response.text()
        return str((await response.json())["user"]["id"])


async def grant(stack: Stack, *arguments: str, answer: str | None = None) -> tuple[int, str, str]:
    """Run the command; with `answer`, standard input is a terminal where this answer is typed."""
    environment = os.environ | {"TRADECOPIER_URL": stack.url, "TRADECOPIER_SECRET_KEY": stack.secret_key}
    keyboard, terminal = pty.openpty()
    try:
        if answer is not None:
            os.write(keyboard, f"{answer}\n".encode())
        done = await asyncio.to_thread(
            subprocess.run,
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL if answer is None else terminal,
            capture_output=True, env=environment, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(keyboard)
        os.close(terminal)
    return done.returncode, done.stdout, done.stderr


def operators(stack: Stack) -> list[str]:
    with stack.database.connect() as connection:
        return [
            str(row[0])
            for row in connection.execute("select user_id from public.operators order by granted_at").fetchall()
        ]


@pytest.fixture
def boss() -> str:
    """An address that nobody has signed up with."""
    return f"boss-{uuid.uuid4()}@example.test"


async def test_where_addresses_are_confirmed_without_a_mail_it_shows_who_signed_up_and_asks(
    stack: Stack, boss: str
) -> None:
    others = operators(stack)
    user = await sign_up(stack, boss)
    status, said, error = await grant(stack, boss, answer="n")
    assert (status, operators(stack)) == (1, others)
    assert error.startswith(f"tradecopier: TC619: {boss} was not made an operator")
    shown = said.splitlines()[0]
    assert shown.startswith(f"{boss}: user {user}, signed up 20")
    assert "without a mail" in shown
    status, said, _ = await grant(stack, boss, answer="y")
    assert (status, said.splitlines()[0], operators(stack)) == (0, shown, [*others, user])


@pytest.mark.parametrize("yes", [["--yes"], []])
async def test_yes_or_no_terminal_answers_yes_and_prints_the_same(stack: Stack, boss: str, yes: list[str]) -> None:
    others = operators(stack)
    user = await sign_up(stack, boss)
    status, said, _ = await grant(stack, boss, *yes, answer="never read" if yes else None)
    shown, question, done = said.splitlines()
    assert shown.startswith(f"{boss}: user {user}, signed up 20")
    assert question.endswith(f"Make {boss} an operator? [y/N]: yes")
    assert (status, done, operators(stack)) == (0, f"{boss} is an operator now", [*others, user])


async def test_an_address_that_is_not_confirmed_is_refused_whatever_the_answer(stack: Stack, boss: str) -> None:
    others = operators(stack)
    async with (
        aiohttp.ClientSession(headers={"apikey": stack.secret_key}) as http,
        http.post(f"{stack.url}/auth/v1/admin/users", json={"email": boss, "password": "correct horse"}) as response,
    ):
        assert response.status == 200
    status, _, error = await grant(stack, boss, "--yes")
    assert (status, operators(stack)) == (1, others)
    assert "TC217" in error


# -- what hosted answers ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def project(settings: web.Response | Mapping[str, object], confirmed: str) -> AsyncIterator[Project]:
    async def told(_: web.Request) -> web.Response:
        return settings if isinstance(settings, web.Response) else web.json_response(settings)

    async def candidate(_: web.Request) -> web.Response:
        at = {"signed_up_at": "2026-11-28T10:00:00+00:00", "confirmed_at": confirmed}
        return web.json_response(at | {"user_id": str(uuid.uuid4()), "email": "boss@example.test", "operator": False})

    async def moved(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"location": "/rest/v1/rpc/operator_candidate"})

    app = web.Application()
    app.router.add_get("/auth/v1/settings", told)
    app.router.add_post("/rest/v1/rpc/grant_operator", moved)
    app.router.add_post("/rest/v1/rpc/operator_candidate", candidate)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield Project(site.name, "sb_secret_x")
    finally:
        await runner.cleanup()


AT_ONCE, LATER = "2026-11-28T10:00:00.2+00:00", "2026-11-28T10:03:00+00:00"


@pytest.mark.parametrize(
    ("settings", "confirmed", "proven"),
    [
        ({"mailer_autoconfirm": False}, LATER, True),
        # signed up when confirmation was not required
        ({"mailer_autoconfirm": False}, AT_ONCE, False),
        ({"mailer_autoconfirm": True}, LATER, False),
        ({}, LATER, False),
        ({"mailer_autoconfirm": "false"}, LATER, False),
    ],
)
async def test_only_a_link_opened_in_a_mail_is_a_proof(
    settings: Mapping[str, object], confirmed: str, proven: bool
) -> None:
    async with project(settings, confirmed) as hosted:
        assert (await hosted.candidate("boss@example.test")).proven is proven


async def test_settings_that_cannot_be_read_prove_nothing() -> None:
    async with project(web.Response(status=503, text="<html>"), LATER) as hosted:
        assert (await hosted.candidate("boss@example.test")).proven is False


@pytest.mark.parametrize(
    "address", ["http://project.example.test", "http://10.0.0.1:8000", "https://project.example.test/rest"]
)
async def test_the_secret_key_is_not_sent_over_plain_http(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agent.cli import run

    monkeypatch.setenv("TRADECOPIER_URL", address)
    monkeypatch.setenv("TRADECOPIER_SECRET_KEY", "sb_secret_x")
    assert await asyncio.to_thread(run, ["operator", "grant", "boss@example.test"]) == 1
    assert "TC611: TRADECOPIER_URL" in capsys.readouterr().err


async def test_the_secret_key_does_not_follow_a_redirect() -> None:
    async with project({"mailer_autoconfirm": False}, LATER) as hosted:
        with pytest.raises(Failure, match="HTTP 307"):
            await hosted.grant("boss@example.test", str(uuid.uuid4()))
