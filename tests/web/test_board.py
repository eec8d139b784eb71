"""The dashboard in a real browser, against the whole embedded stack, with rows created by the real functions."""

import re

import aiohttp
import psycopg
import pytest
from conftest import Opener
from dashboard_data import Desk, Person
from playwright.async_api import Locator, Page, expect

from agent.stack.stack import Stack
from agent.testbed.figures import VERDICT

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: disables the page's own polling, so that changes appear only after a broadcast
NO_POLLING = (
    "const every = setInterval;"
    " window.setInterval = (run, ms, ...more) => (ms === 15000 ? 0 : every(run, ms, ...more));"
)
#: makes the polling more frequent
FAST_POLLING = (
    "const every = setInterval;"
    " window.setInterval = (run, ms, ...more) => every(run, ms === 15000 ? 500 : ms, ...more);"
)

REMEMBER_DOWN = """() => {
    const look = () => { window.wasDown ||= document.querySelector("[data-socket=down]") !== null; };
    const options = { subtree: true, attributes: true, attributeFilter: ["data-socket"] };
    new MutationObserver(look).observe(document.body, options);
}"""


async def sign_in(page: Page, person: Person) -> None:
    await page.get_by_label("E-mail").fill(person.email)
    await page.get_by_label("Password").fill(person.password)
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def panel(page: Page, title: str) -> Locator:
    return page.get_by_role("region", name=title)


def verdict(page: Page) -> Locator:
    return panel(page, "Is anything wrong now?")


async def test_a_user_signs_in_and_sees_accounts_executions_and_refusals(desk: Desk, open_page: Opener) -> None:
    owner = await desk.person("trader")
    master, follower, tiny = [await desk.account(owner, name) for name in ("Leader", "Copy", "Tiny")]
    await desk.copier(owner, master, follower, sizing_value="0.5")
    await desk.copier(owner, master, tiny, sizing_value="0.001")
    await desk.fills(follower, await desk.opens(master))

    page = await open_page()
    await sign_in(page, owner)

    await expect(verdict(page)).to_contain_text("All is well: 3 of 3 accounts connected, 2 copiers on.")
    await expect(panel(page, "Agents")).to_contain_text("3 of 3 accounts connected")
    row = panel(page, "Accounts").get_by_role("row", name=re.compile("Leader"))
    await expect(row).to_contain_text("connected")
    await expect(row).to_contain_text("10,000.00")
    await expect(row).to_contain_text("master of 2 copiers")
    executed = panel(page, "Executions").get_by_role("row", name=re.compile("open buy 0.50 EURUSD"))
    await expect(executed).to_contain_text("Copy")
    await expect(executed).to_contain_text("completed")
    await expect(panel(page, "Latency")).to_contain_text("the only order of today")
    refused = panel(page, "Not copied, and why")
    await expect(refused).to_contain_text("the size is under the follower's minimum")
    await expect(refused).to_contain_text("opened buy 1.00 EURUSD for Tiny")


async def test_every_trade_is_told_with_its_fill_and_its_cost_or_with_the_reason(desk: Desk, open_page: Opener) -> None:
    owner = await desk.person("trader")
    master, follower, tiny, poor = [await desk.account(owner, name) for name in ("Leader", "Half", "Tiny", "Poor")]
    await desk.copier(owner, master, follower, sizing_value="0.5")
    await desk.copier(owner, master, tiny, sizing_value="0.001")
    await desk.copier(owner, master, poor, sizing_value="0.25")
    for execution in (await desk.events(master, {
        "type": "opened", "unchanged_at": None,
        "position": {"ticket": "t1", "kind": "position", "symbol": "EURUSD", "side": "buy", "lots": "1.00",
                     "price": "1.10000"},
    }))["executions"]:  # fmt: skip
        if execution["account_id"] == follower.account_id:
            await desk.fills(follower, execution)  # at 1.10010
        else:
            await desk.rejects(poor, execution, "trade_disabled", "trading is disabled")

    page = await open_page()
    await sign_in(page, owner)

    rows = panel(page, "Trades").get_by_role("row", name=re.compile("opened buy 1.00 EURUSD"))
    await expect(rows).to_have_count(3)
    copied = rows.filter(has_text="Half")
    for text in ("copied", "0.50", "at 1.1001", "10 points", "5.00 USD"):
        await expect(copied).to_contain_text(text)
    await expect(rows.filter(has_text="Tiny")).to_contain_text(
        "not copiedthe size is under the follower's minimum;"
        " raise the multiplier, or let small copies be raised to the minimum"
    )
    await expect(rows.filter(has_text="Poor")).to_contain_text(
        "not copiedtrading is switched off for the symbol or the account; ask the broker"
    )


async def test_signing_out_forgets_the_session_for_good(desk: Desk, open_page: Opener) -> None:
    page = await open_page()
    await sign_in(page, await desk.person("trader"))
    await page.reload()
    await expect(page.get_by_role("heading", name="Executions")).to_be_visible()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("Password")).to_be_visible()
    await page.reload()
    await expect(page.get_by_label("Password")).to_be_visible()


async def test_a_wrong_password_is_said_in_words_and_the_form_stays(desk: Desk, open_page: Opener) -> None:
    owner = await desk.person("trader")
    page = await open_page()
    await page.get_by_label("E-mail").fill(owner.email)
    await page.get_by_label("Password").fill("not it")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert").filter(has_text="wrong")).to_have_text("E-mail or password is wrong.")
    await page.get_by_label("Password").fill(owner.password)
    await page.keyboard.press("Enter")
    await expect(panel(page, "Accounts")).to_contain_text("No account is connected yet")
    await expect(panel(page, "Executions")).to_contain_text("No trade was copied yet")
    await expect(verdict(page)).to_have_attribute("data-tone", "idle")


async def test_a_new_execution_appears_by_the_doorbell_without_a_reload(desk: Desk, open_page: Opener) -> None:
    owner = await desk.person("trader")
    master, follower = [await desk.account(owner, name) for name in ("Leader", "Copy")]
    await desk.copier(owner, master, follower)
    page = await open_page(init=NO_POLLING)
    await sign_in(page, owner)
    await expect(page.locator("[data-socket=joined]")).to_be_visible()
    await expect(panel(page, "Executions")).to_contain_text("No trade was copied yet")
    await page.evaluate("window.neverReloaded = true")

    execution = await desk.opens(master, "0.70")

    row = panel(page, "Executions").get_by_role("row", name=re.compile("open buy 0.70 EURUSD"))
    await expect(row).to_be_visible()
    await desk.fills(follower, execution)
    await expect(row).to_contain_text("completed")
    assert await page.evaluate("window.neverReloaded") is True


async def test_the_board_asks_by_itself_while_the_socket_is_down(desk: Desk, open_page: Opener) -> None:
    owner = await desk.person("trader")
    master, follower = [await desk.account(owner, name) for name in ("Leader", "Copy")]
    await desk.copier(owner, master, follower)
    page = await open_page(
        init=FAST_POLLING + "window.WebSocket = class { constructor() { throw new Error('no sockets here'); } };"
    )
    await sign_in(page, owner)
    await expect(page.locator("[data-socket=down]")).to_have_text("Every 15 s")
    await desk.opens(master, "0.30")
    await expect(panel(page, "Executions")).to_contain_text("open buy 0.30 EURUSD")


async def test_the_doorbell_is_heard_again_after_the_gateway_was_gone(
    own_stack: Stack, own_desk: Desk, open_own_page: Opener
) -> None:
    owner = await own_desk.person("trader")
    master, follower = [await own_desk.account(owner, name) for name in ("Leader", "Copy")]
    await own_desk.copier(owner, master, follower)
    page = await open_own_page(init=NO_POLLING)
    await sign_in(page, owner)
    await expect(page.locator("[data-socket=joined]")).to_be_visible()
    await page.evaluate(REMEMBER_DOWN)
    await own_stack.restart_gateway()
    # it may be back by now
    await page.wait_for_function("window.wasDown")
    await expect(page.locator("[data-socket=joined]")).to_be_visible(timeout=40_000)
    await own_desk.opens(master, "0.40")
    await expect(panel(page, "Executions")).to_contain_text("open buy 0.40 EURUSD")


async def test_nobody_sees_the_rows_of_another_user(desk: Desk, open_page: Opener) -> None:
    owner, stranger = await desk.person("trader"), await desk.person("stranger")
    master, follower = [await desk.account(owner, name) for name in ("Leader", "Copy")]
    await desk.copier(owner, master, follower)
    await desk.account(stranger, "Foreign")
    await desk.opens(master)
    page = await open_page()
    await sign_in(page, stranger)
    await expect(panel(page, "Accounts")).to_contain_text("Foreign")
    await expect(panel(page, "Executions")).to_contain_text("No trade was copied yet")
    await expect(page.locator("body")).not_to_contain_text("Leader")
    await expect(page.locator("body")).not_to_contain_text(desk.name)


async def test_the_top_row_says_what_is_wrong_and_since_when(
    own_stack: Stack, own_desk: Desk, open_own_page: Opener
) -> None:
    owner, operator = await own_desk.person("trader"), await own_desk.operator()
    master, follower = [await own_desk.account(owner, name) for name in ("Leader", "Copy")]
    await own_desk.copier(owner, master, follower)
    await own_desk.rejects(follower, await own_desk.opens(master), "trade_disabled", "trading is off until Monday")
    page = await open_own_page()
    await sign_in(page, operator)

    agents = panel(page, "Agents").get_by_role("row", name=re.compile(own_desk.name))
    await expect(agents).to_contain_text("version 1.2.3")
    await expect(agents).to_contain_text("12 %")
    await expect(verdict(page)).to_contain_text("One order was rejected within the last hour")
    refused = panel(page, "Not copied, and why")
    await expect(refused).to_contain_text("trading is switched off for the symbol or the account")
    await expect(refused).to_contain_text("trading is off until Monday")

    async with await psycopg.AsyncConnection.connect(own_stack.dsn, autocommit=True) as owner_of_all:
        await owner_of_all.execute(
            "update public.vps_instances set lease_expires_at = now() - interval '1 second' where true"
        )
    await expect(verdict(page)).to_have_attribute("data-tone", "bad")
    await expect(verdict(page)).to_contain_text(f"Agent {own_desk.name} is offline")
    await expect(verdict(page).get_by_role("listitem").filter(has_text="offline")).to_contain_text(
        re.compile(r"\d+ s ago")
    )


async def test_a_dead_agent_shows_though_nothing_runs_any_more(
    own_stack: Stack, own_desk: Desk, open_own_page: Opener
) -> None:
    owner = await own_desk.person("trader")
    await own_desk.account(owner, "Leader")
    page = await open_own_page(init=FAST_POLLING)
    await sign_in(page, owner)
    await expect(verdict(page)).to_have_attribute("data-tone", "ok")
    async with await psycopg.AsyncConnection.connect(own_stack.dsn, autocommit=True) as owner_of_all:
        await owner_of_all.execute("update cron.job set active = false where true")
        await owner_of_all.execute("update public.vps_instances set lease_expires_at = clock_timestamp() where true")
        await expect(verdict(page)).to_have_attribute("data-tone", "bad")
        await expect(verdict(page)).to_contain_text("Leader is disconnected: its VPS sends no heartbeats")
        await expect(panel(page, "Accounts")).to_contain_text("disconnected")
        await expect(panel(page, "Agents")).to_contain_text("0 of 1 account connected")
        stored = await (await owner_of_all.execute("select status from public.trading_accounts")).fetchall()
        assert stored == [("connected",)]
        told = await own_desk.call(owner.user_id, "verdict", "p_request", {})
        await expect(verdict(page)).to_contain_text(told["text"])
        # what was bad stays bad while nothing can be read
        await page.route("**/rest/v1/**", lambda route: route.abort())
        await expect(verdict(page)).to_contain_text("The last refresh failed")
        await expect(verdict(page)).to_have_attribute("data-tone", "bad")
        # an operator's board says what the terminal of a run says
        operator = await own_desk.operator()
        farm = await open_own_page()
        await sign_in(farm, operator)
        terminal = await (await owner_of_all.execute(VERDICT)).fetchone()
        assert terminal is not None
        await expect(verdict(farm)).to_contain_text(terminal[0]["text"])
        await expect(verdict(farm)).to_have_attribute("data-tone", terminal[0]["tone"])


async def test_an_account_that_waits_says_what_for_and_is_not_green(desk: Desk, open_page: Opener) -> None:
    owner = await desk.person("trader")
    await desk.pending(owner, "Waiting")
    page = await open_page()
    await sign_in(page, owner)
    await expect(verdict(page)).to_have_attribute("data-tone", "warn")
    await expect(verdict(page)).to_contain_text("Waiting is pending: its agent has not logged in yet")
    await expect(panel(page, "Accounts")).to_contain_text("its agent has not logged in yet")


async def test_a_close_that_is_overdue_is_the_first_line(
    own_stack: Stack, own_desk: Desk, open_own_page: Opener
) -> None:
    owner = await own_desk.person("trader")
    master, follower = [await own_desk.account(owner, name) for name in ("Leader", "Copy")]
    await own_desk.copier(owner, master, follower)
    opened = await own_desk.opens(master, "0.30")
    await own_desk.fills(follower, opened)
    await own_desk.trouble(master, "autotrading_off: the terminal does not let experts trade")
    await own_desk.closes(master)
    async with await psycopg.AsyncConnection.connect(own_stack.dsn, autocommit=True) as owner_of_all:
        await owner_of_all.execute(
            "update public.trade_execution_queue set queued_at = queued_at - interval '20 seconds'"
            " where finalized_at is null"
        )
    page = await open_own_page()
    await sign_in(page, owner)
    await expect(verdict(page).get_by_role("status")).to_contain_text("Copy: the close of EURUSD 0.3 is not filled")
    await expect(verdict(page).get_by_role("status")).to_contain_text("close it at the broker if you cannot wait")
    await expect(verdict(page).get_by_role("listitem").first).to_contain_text("Copy: the close of EURUSD 0.3")


async def test_an_alert_stays_on_top_until_its_user_has_seen_it(desk: Desk, open_page: Opener) -> None:
    owner, stranger = await desk.person("trader"), await desk.person("stranger")
    account = await desk.account(owner, "Leader")
    await desk.account(stranger, "Foreign")
    page, other = await open_page(init=NO_POLLING), await open_page(init=NO_POLLING)
    await sign_in(page, owner)
    await sign_in(other, stranger)
    await expect(page.locator("[data-socket=joined]")).to_be_visible()
    await expect(verdict(page)).to_contain_text("All is well")
    await expect(panel(page, "Alerts")).to_have_count(0)

    await desk.trouble(account, "autotrading_off: the terminal does not let experts trade")

    rows = panel(page, "Alerts").get_by_role("listitem")
    await expect(rows).to_have_count(1)
    for text in ("Account Leader cannot trade: the terminal does not let experts trade", "critical"):
        await expect(rows).to_contain_text(text)
    await expect(verdict(page)).to_have_attribute("data-tone", "bad")
    await expect(verdict(page)).to_contain_text("One unread critical alert")
    await expect(verdict(other)).to_contain_text("All is well")
    await expect(panel(other, "Alerts")).to_have_count(0)

    await page.route("**/rpc/mark_alert_seen", lambda route: route.abort())
    await rows.get_by_role("button", name="Seen").click()
    await expect(rows.get_by_role("alert")).to_contain_text("could not be marked as seen")
    await page.unroute("**/rpc/mark_alert_seen")
    await rows.get_by_role("button", name="Seen").click()
    await expect(panel(page, "Alerts")).to_have_count(0)
    await expect(verdict(page)).to_contain_text("Leader is degraded")
    await expect(verdict(page)).not_to_contain_text("alert")


async def test_everybody_is_told_that_trading_is_stopped_and_why(
    own_stack: Stack, own_desk: Desk, open_own_page: Opener
) -> None:
    owner = await own_desk.person("trader")
    await own_desk.account(owner, "Leader")
    page = await open_own_page()
    await sign_in(page, owner)
    await expect(verdict(page)).to_contain_text("All is well")
    await own_stack.call("set_trading", {"p_request": {"state": "off", "reason": "the feed of broker X is wrong"}})
    await expect(verdict(page)).to_have_attribute("data-tone", "bad")
    await expect(verdict(page)).to_contain_text(
        "All trading is stopped by the operators: the feed of broker X is wrong"
    )
    await own_stack.call("set_trading", {"p_request": {"state": "on"}})
    await expect(verdict(page)).to_contain_text("All is well")


async def test_what_cannot_be_read_is_said_and_old_figures_are_called_old(desk: Desk, open_page: Opener) -> None:
    owner = await desk.person("trader")
    await desk.account(owner, "Leader")
    page = await open_page(init=FAST_POLLING)
    await sign_in(page, owner)
    await expect(verdict(page)).to_contain_text("All is well")
    await page.route("**/rest/v1/**", lambda route: route.abort())
    await expect(verdict(page)).to_contain_text("The last refresh failed")
    await expect(verdict(page)).to_have_attribute("data-tone", "warn")
    await expect(panel(page, "Accounts")).to_contain_text("Leader")

    await page.evaluate("const real = Date.now; Date.now = () => real() + 60000;")
    await expect(verdict(page)).to_contain_text("the figures below are old")
    await expect(verdict(page)).to_have_attribute("data-tone", "bad")

    await page.unroute("**/rest/v1/**")
    await expect(verdict(page)).to_contain_text("All is well")


async def test_a_session_that_the_project_refuses_leads_back_to_the_form(desk: Desk, open_page: Opener) -> None:
    page = await open_page(init=FAST_POLLING)
    await sign_in(page, await desk.person("trader"))
    refusal = '{"code": "PGRST303", "message": "JWT expired", "details": null, "hint": null}'
    await page.route(
        "**/rest/v1/**", lambda route: route.fulfill(status=401, content_type="application/json", body=refusal)
    )
    await expect(page.get_by_label("Password")).to_be_visible()


async def test_the_board_fits_a_phone_and_a_desk_in_dark_and_light(desk: Desk, open_page: Opener) -> None:
    owner = await desk.person("trader")
    master, follower = [await desk.account(owner, name) for name in ("A leader with quite a long name", "Copy")]
    await desk.copier(owner, master, follower)
    await desk.fills(follower, await desk.opens(master))
    backgrounds = set()
    for width, scheme in ((390, "dark"), (1440, "light")):
        page = await open_page(viewport={"width": width, "height": 850}, color_scheme=scheme)
        await sign_in(page, owner)
        await expect(panel(page, "Executions")).to_contain_text("completed")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        for table in await page.locator("table").all():
            overflow = "(table) => table.scrollWidth - table.parentElement.clientWidth"
            assert await table.evaluate(overflow) <= 0
        backgrounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


async def test_the_demo_login_is_offered_only_where_the_stack_says_so(
    own_stack: Stack, own_desk: Desk, open_own_page: Opener
) -> None:
    page = await open_own_page()
    await expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()
    await expect(page.get_by_role("region", name="Demo login")).to_have_count(0)

    demo = await own_desk.person("demo")
    own_stack.show_login(demo.email, demo.password)
    await page.reload()
    await page.get_by_role("button", name="Sign in to the demo").click()
    await expect(page.get_by_role("button", name="Sign out")).to_be_visible()

    async with aiohttp.ClientSession(own_stack.url) as http:
        for headers in ({}, {"Sec-Fetch-Site": "cross-site", "Origin": "https://elsewhere.example"}):
            async with http.get("/config.json", headers=headers) as answer:
                assert set(await answer.json()) == {"url", "publishable_key"}
