"""A browser for the dashboard's tests: an installed Chromium, never one that is downloaded; and the desk that makes rows."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from desk import Desk
from playwright.async_api import Browser, Page, async_playwright, expect

from agent.local.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_MS = 20_000


class Opener(Protocol):
    """Opens the dashboard in a new profile."""

    async def __call__(self, *, init: str = "", **context: Any) -> Page: ...


def find_chromium() -> str | None:
    named = os.environ.get("TRADECOPIER_CHROMIUM")
    if named:
        return named
    places = ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", "/usr/lib/chromium/chromium")
    return next(filter(None, map(shutil.which, NAMES)), None) or next(filter(os.path.exists, places), None)


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium was found: `make setup` as root installs one, or set TRADECOPIER_CHROMIUM")
    # Chromium's sandbox refuses to run as root
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=[*QUIET, *sandbox])
        try:
            yield browser
        finally:
            await browser.close()


@pytest.fixture
async def open_page(stack: Stack) -> AsyncIterator[Opener]:
    """The page must ask nobody but its own origin, and must not fail inside."""
    if not (ROOT / "web" / "out" / "index.html").exists():
        pytest.skip("the page is not built: run `make setup`")
    expect.set_options(timeout=WAIT_MS)
    strangers: list[str] = []
    faults: list[str] = []
    async with launched() as browser:

        async def opened(*, init: str = "", **context: Any) -> Page:
            page = await (await browser.new_context(**context)).new_page()
            page.set_default_timeout(WAIT_MS)
            page.on("request", lambda request: None if request.url.startswith(stack.url) else strangers.append(request.url))
            page.on("pageerror", lambda error: faults.append(str(error)))
            if init:
                await page.add_init_script(init)
            await page.goto(stack.url)
            return page

        yield opened
    assert strangers == []
    assert faults == []


@pytest.fixture
async def desk(stack: Stack) -> AsyncIterator[Desk]:
    # a test's database is a copy, and pg_cron's jobs still name the one that it was copied from
    async with await psycopg.AsyncConnection.connect(stack.dsn, autocommit=True) as owner:
        await owner.execute("update cron.job set database = current_database() where true")
    async with Desk(stack) as made:
        yield made
