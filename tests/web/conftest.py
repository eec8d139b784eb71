"""A browser for the dashboard's tests (an installed Chromium, never downloaded), and the desk that creates rows."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
import pytest_asyncio
from dashboard_data import Desk
from playwright.async_api import Browser, Page, async_playwright, expect

from agent.stack.stack import Stack

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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One browser per module; each page has its own profile."""
    async with launched() as running:
        yield running


@asynccontextmanager
async def opener(browser: Browser, stack: Stack) -> AsyncIterator[Opener]:
    """The page must send requests only to its own origin, and must not raise errors."""
    if not (ROOT / "web" / "out" / "index.html").exists():
        pytest.skip("the page is not built: run `make setup`")
    expect.set_options(timeout=WAIT_MS)
    strangers: list[str] = []
    faults: list[str] = []
    async with AsyncExitStack() as contexts:

        async def opened(*, init: str = "", **settings: Any) -> Page:
            context = await browser.new_context(**settings)
            contexts.push_async_callback(context.close)
            page = await context.new_page()
            page.set_default_timeout(WAIT_MS)
            page.on(
                "request", lambda request: None if request.url.startswith(stack.url) else strangers.append(request.url)
            )
            page.on("pageerror", lambda error: faults.append(str(error)))
            if init:
                await page.add_init_script(init)
            await page.goto(stack.url)
            return page

        yield opened
    assert strangers == []
    assert faults == []


# The browser runs in its module's event loop, so everything that uses it must, too.


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Browser, stack: Stack) -> AsyncIterator[Opener]:
    async with opener(browser, stack) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def open_own_page(browser: Browser, own_stack: Stack) -> AsyncIterator[Opener]:
    async with opener(browser, own_stack) as opened:
        yield opened


@asynccontextmanager
async def furnished(stack: Stack) -> AsyncIterator[Desk]:
    # a test's database is a copy, and pg_cron's jobs still name the original
    async with await psycopg.AsyncConnection.connect(stack.dsn, autocommit=True) as owner:
        await owner.execute("update cron.job set database = current_database() where true")
    async with Desk(stack) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def desk(stack: Stack) -> AsyncIterator[Desk]:
    async with furnished(stack) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def own_desk(own_stack: Stack) -> AsyncIterator[Desk]:
    async with furnished(own_stack) as made:
        yield made
