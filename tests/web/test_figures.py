"""Terminal, dashboard and JSON tell the same figures, in words."""

import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import psycopg
import pytest
from conftest import Opener, opener
from dashboard_data import Desk, Person
from playwright.async_api import Browser, Locator, Page, expect
from rich.console import Console
from test_board import panel, sign_in

from agent.demo.live_table import plain, render, take
from agent.demo.run import Options, Scene, run_demo
from agent.demo.summary import summary
from agent.stack.stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).resolve().parents[2]
MACHINE_WORD = re.compile(r"[a-z0-9]_[a-z0-9]")


def figure(page: Page, title: str, name: str) -> Locator:
    return panel(page, title).locator(f'[data-figure="{name}"]')


async def test_a_close_shows_what_the_copy_closed(desk: Desk, open_page: Opener) -> None:
    owner = await desk.person("trader")
    master, follower = [await desk.account(owner, name) for name in ("Leader", "Half")]
    await desk.copier(owner, master, follower, sizing_value="0.5")
    position = {"ticket": "t7", "kind": "position", "symbol": "EURUSD", "side": "buy", "lots": "1.00", "price": "1.1"}
    opened = await desk.events(master, {"type": "opened", "unchanged_at": None, "position": position})
    ticket = await desk.fills(follower, opened["executions"][0])
    closed = await desk.events(
        master,
        {"type": "closed", "unchanged_at": None, "evidence": "deal", "deal_price": "1.1",
         "position": position | {"lots": "0"}},
    )  # fmt: skip
    await desk.takes_off(follower, closed["executions"][0], ticket)

    page = await open_page()
    await sign_in(page, owner)

    row = panel(page, "Trades").get_by_role("row", name=re.compile("closed buy"))
    await expect(row).to_contain_text("closed buy 0.50 EURUSD")
    await expect(panel(page, "Executions").get_by_role("row", name=re.compile("close buy"))).to_contain_text(
        "close buy 0.50 EURUSD"
    )
    await expect(panel(page, "Trades")).not_to_contain_text("0.00 EURUSD")


async def test_what_was_nothing_to_do_is_counted_apart(desk: Desk, open_page: Opener) -> None:
    owner = await desk.person("trader")
    master, tiny = [await desk.account(owner, name) for name in ("Leader", "Tiny")]
    await desk.copier(owner, master, tiny, sizing_value="0.001")
    position = {"ticket": "t8", "kind": "position", "symbol": "EURUSD", "side": "buy", "lots": "1.00", "price": "1.1"}
    await desk.events(master, {"type": "opened", "unchanged_at": None, "position": position})
    await desk.call(owner.user_id, "pause_account", "p_request", {"account_id": tiny.account_id, "state": "off"})
    await desk.events(
        master, {"type": "closed", "unchanged_at": None, "evidence": "deal", "position": position | {"lots": "0"}}
    )

    page = await open_page(timezone_id="Pacific/Auckland")
    await sign_in(page, owner)

    await expect(panel(page, "Today")).to_contain_text("today in Pacific/Auckland, one trade per follower")
    for name, count in (("trades", "2"), ("copied", "0"), ("nothing_to_do", "1"), ("not_copied", "1")):
        await expect(figure(page, "Today", name)).to_have_text(count)
    row = panel(page, "Trades").get_by_role("row", name=re.compile("closed buy"))
    await expect(row).to_contain_text("nothing to do")
    await expect(row).to_contain_text("the position was not copied; the reason is at its opening")
    refused = panel(page, "Not copied, and why")
    await expect(refused).to_contain_text("today in Pacific/Auckland: 1 trade")
    await expect(refused.get_by_role("list", name="Reasons").get_by_role("listitem")).to_have_count(1)


async def test_alerts_are_marked_as_seen_together(desk: Desk, open_page: Opener) -> None:
    owner = await desk.person("trader")
    accounts = [await desk.account(owner, name) for name in ("Leader", "Copy")]
    for account in accounts:
        await desk.trouble(account, "autotrading_off: the terminal does not let experts trade")
    page = await open_page()
    await sign_in(page, owner)
    rows = panel(page, "Alerts").get_by_role("listitem")
    await expect(rows).to_have_count(2)

    await page.route("**/rpc/mark_alerts_seen", lambda route: route.abort())
    await page.get_by_role("button", name="Mark all 2 as seen").click()
    await expect(panel(page, "Alerts").get_by_role("alert")).to_contain_text("could not be marked as seen")
    await page.unroute("**/rpc/mark_alerts_seen")
    await page.get_by_role("button", name="Mark all 2 as seen").click()
    await expect(panel(page, "Alerts")).to_have_count(0)


def codes(*headings: str) -> list[str]:
    """The codes of docs/errors.md under these headings."""
    page = (ROOT / "docs" / "errors.md").read_text()
    sections = [page.partition(f"\n{heading}")[2].split("\n#", 1)[0] for heading in headings]
    rows = [row for section in sections for row in re.findall(r"^\|([^|]*)\|", section, re.MULTILINE)]
    return sorted({code for row in rows for code in re.findall(r"`(\w+)`", row)})


async def test_no_name_of_the_code_stands_on_the_board(own_stack: Stack, own_desk: Desk, open_own_page: Opener) -> None:
    """Every reason and warning there is, of a decision, an order, an alert and an account's status."""
    owner = await own_desk.person("trader")
    master, follower, tiny = [await own_desk.account(owner, name) for name in ("Leader", "Copy", "Tiny")]
    await own_desk.copier(owner, master, follower)
    await own_desk.copier(owner, master, tiny, sizing_value="0.001")
    await own_desk.rejects(follower, await own_desk.opens(master), "no_money", "not enough money")
    await own_desk.trouble(follower, "autotrading_off: the terminal does not let experts trade")
    reasons = codes("### Refused", "### Refused by the broker", "### Decided by the agent", "### Nothing to do")
    warnings = codes("## Warnings")
    assert len(reasons) > 80
    async with await psycopg.AsyncConnection.connect(own_stack.dsn, autocommit=True) as database:
        await database.execute(
            """insert into public.copy_outcomes (event_id, copier_id, user_id, reason)
            select 1000000 + row_number() over (), o.copier_id, o.user_id, code
            from public.copy_outcomes o, unnest(%s::text[]) code where o.reason is not null""",
            (reasons,),
        )
        await database.execute(
            """insert into public.trade_execution_queue (step_id, lane, copier_id, user_id, account_id, event_id,
              action, priority, symbol, side, lots, status, reason, send_before, queued_at, updated_at, finalized_at)
            select 9000000 + row_number() over (), 'x', q.copier_id, q.user_id, q.account_id,
              2000000 + row_number() over (), 'open', 40, 'EURUSD', 'buy', 1, 'rejected', code,
              now(), now(), now(), now()
            from public.trade_execution_queue q, unnest(%s::text[]) code""",
            (reasons,),
        )
        await database.execute(
            """insert into public.copy_outcomes (event_id, copier_id, user_id, execution_id)
            select q.event_id, q.copier_id, q.user_id, q.id from public.trade_execution_queue q
            where q.event_id >= 2000000""",
        )
        await database.execute(
            "update public.trade_execution_queue set warnings = %s where event_id < 1000000", (warnings,)
        )
    page = await open_own_page()
    await sign_in(page, owner)
    await expect(figure(page, "Today", "not_copied")).not_to_have_text("0")
    more = page.get_by_role("button", name=re.compile("^Show all"))
    for _ in range(await more.count()):
        await more.first.click()
    text = await page.locator("main").inner_text()
    assert MACHINE_WORD.findall(text) == [], [line for line in text.splitlines() if MACHINE_WORD.search(line)]
    assert "not enough free margin" in text
    reasons_shown = panel(page, "Not copied, and why").get_by_role("list", name="Reasons").get_by_role("listitem")
    assert await reasons_shown.count() == len(set(reasons) - set(codes("### Nothing to do")))


async def read_board(page: Page) -> dict[str, str]:
    """The figures of the board by name."""
    found: dict[str, str] = {}
    for one in await page.locator("[data-figure]").all():
        found[await one.get_attribute("data-figure") or ""] = await one.inner_text()
    for one in await page.locator("[data-stage]").all():
        found[f"stage {await one.get_attribute('data-stage')}"] = await one.inner_text()
    found["verdict"] = await panel(page, "Is anything wrong now?").inner_text()
    return found


def shown_ms(value: float) -> str:
    """A time as the board writes it."""
    return f"{value:.1f}" if value < 10 else f"{round(value):,}".replace(",", " ")


def counted(value: object) -> Mapping[str, int]:
    assert isinstance(value, Mapping)
    return value


async def test_terminal_board_and_json_of_one_run_agree_figure_by_figure(browser: Browser) -> None:
    found: dict[str, object] = {}

    async def afterwards(scene: Scene, figures: dict[str, object]) -> None:
        picture = await take(scene.testbed.farm.observer)
        out = StringIO()
        Console(file=out, width=200, force_terminal=False).print(render(picture, "now", width=200))
        stack = scene.testbed.stack
        async with opener(browser, stack) as opened:
            page = await opened()
            await sign_in(page, Person(scene.owner.user_id, scene.owner.email, scene.owner.password))
            await expect(figure(page, "Today", "trades")).to_have_text(str(counted(figures["trades"])["all"]))
            found.update(
                figures=figures, line=plain(picture, "now"), table=out.getvalue(), board=await read_board(page)
            )

    await run_demo(Options(seconds=8), Console(file=StringIO()), afterwards=afterwards)

    figures, board = found["figures"], found["board"]
    line, table = str(found["line"]), re.sub(r"\s+", " ", str(found["table"]))
    assert isinstance(figures, dict)
    assert isinstance(board, dict)
    trades, orders = counted(figures["trades"]), figures["executions"]
    assert trades["copied"] > 0
    assert trades["all"] == sum(
        trades[name] for name in ("copied", "partly", "in_flight", "nothing_to_do", "not_copied")
    )
    assert sum(counted(figures["not_copied"]).values()) == trades["not_copied"]

    # JSON = board
    for name in ("copied", "partly", "in_flight", "nothing_to_do", "not_copied"):
        assert board[name] == str(trades[name]), name
    for name in ("completed", "expired", "cancelled", "open"):
        assert board[name] == str(orders[name]), name
    assert board["rejected"] == str(sum(orders["rejected"].values()))
    shown = {name.removeprefix("not_copied "): int(n) for name, n in board.items() if name.startswith("not_copied ")}
    assert shown == figures["not_copied"]
    # JSON = terminal
    for name in ("copied", "partly", "in_flight", "nothing_to_do", "not_copied"):
        words = f"{trades[name]} {name.replace('_', ' ')}"
        if trades[name]:
            assert words in line, words
            assert words in table, words
    for name in ("completed", "expired", "cancelled"):
        if orders[name]:
            assert f"{orders[name]} {name}" in line
            assert f"{orders[name]} {name}" in table
    for reason, count in counted(figures["not_copied"]).items():
        assert f"{count} {reason.replace('_', ' ')}" in line
        assert f"{count} {reason.replace('_', ' ')}" in table
        assert f"{count} {reason.replace('_', ' ')}" in summary(figures)
    said = figures["verdict"]["text"]
    assert said in line
    assert said in table
    assert said in board["verdict"]
    success = figures["success_rate"]
    assert board["success_rate"] == f"{success * 100:.4g} %"
    # times: of the last 500 orders, and of the whole run if it had no more
    ours, whole, stages = figures["ours_ms"], figures["whole_ms"], figures["stages_ms"]
    assert ours["n"] > 0
    if ours["n"] <= 500:
        assert f"ours p50 {ours['p50']:.1f} ms, p95 {ours['p95']:.1f} ms" in table
        for name in ("p50", "p95", "p99", "max"):
            assert board[name] == shown_ms(ours[name]), name
            assert board[f"whole {name}"] == shown_ms(whole[name]), name
        for name, median in stages.items():
            assert board[f"stage {name}"] == f"{shown_ms(median)} ms", name
