"""Latency of one tenant's closes while another uses everything that its limits allow: `tradecopier bench tenants`."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agent.bench.arrivals import arrive
from agent.bench.copying import BALANCE, Field, Order, Trades, add_followers, allow_accounts, known, prepare, run_events
from agent.bench.histogram import describe
from agent.bench.loads import (
    RULES,
    SETTINGS_BYTES,
    Ghost,
    Tenant,
    at_the_limit,
    call_functions,
    fill_tables,
    mappings,
    read_tables,
    rename_symbols,
    running,
)
from agent.bench.machine import machine
from agent.testbed.farm import Opening
from agent.testbed.testbed import Testbed

Figures = dict[str, object]
Say = Callable[[str], None]

MAPPED_COPIERS = 4
#: events per second of the loud tenant's master; each causes one order per follower
LOUD_RATE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """`samples` events of the quiet tenant per load, at `rate` per second; the rest describes the loud tenant."""

    samples: int
    rate: float
    #: accounts with every list and setting at its limit, and copiers of one master
    accounts: int
    followers: int
    #: calls per second of each function, and for how long
    calls: float
    seconds: float
    #: rows in the largest tables
    rows: int


async def tenants_figures(sizes: Sizes, say: Say) -> Figures:
    """Measure a tenant's closes under each load by itself. Raises `Failure` when an order is lost or duplicated."""
    async with Testbed.open("tenants", say=say, capacity=sizes.accounts + sizes.followers + 10) as testbed:
        about = await machine(testbed.farm.observer)
        quiet = await add_followers(testbed, await prepare(testbed, 2, say), 1, say, beside=False)
        found: Figures = {"alone": await _measure(testbed, quiet, sizes, say, "alone")}
        await allow_accounts(testbed, max(200, sizes.accounts, sizes.followers) + 10)
        loud = await _loud(testbed, sizes.accounts, say)
        await _fill_up(testbed, loud, say)
        async with _trading(testbed, loud):
            found["limits"] = await _measure(testbed, quiet, sizes, say, f"{sizes.accounts} accounts at every limit")
        await _more_followers(testbed, loud, sizes.followers, say)
        async with _trading(testbed, loud):
            found["fanout"] = await _measure(testbed, quiet, sizes, say, f"{sizes.followers} copiers of one master")
        async with running(lambda: call_functions(testbed, loud, sizes.seconds, sizes.calls)):
            found["functions"] = await _measure(
                testbed, quiet, sizes, say, f"{sizes.calls:g} calls per second of each function"
            )
        say(f"{sizes.rows} rows in the largest tables")
        await fill_tables(testbed, loud, sizes.rows)
        async with running(lambda: read_tables(testbed, loud)):
            found["reads"] = await _measure(testbed, quiet, sizes, say, "20 readers of the largest tables")
        ghost = await Ghost.enrol(testbed, loud)
        async with running(lambda: rename_symbols(ghost)):
            found["renamed"] = await _measure(testbed, quiet, sizes, say, "1,000 symbols renamed at once")
        return {
            "benchmark": "tenants",
            **{name: getattr(sizes, name) for name in Sizes.__slots__},
            "closes_ms": found,
            "answers": dict(sorted(loud.answers.items())),
            "machine": about,
        }


async def _measure(testbed: Testbed, quiet: Field, sizes: Sizes, say: Say, what: str) -> Figures:
    """Measure from the moment when a close was due until its copy was sent."""
    say(what)
    orders = await run_events(testbed, quiet, events=sizes.samples, warm_up=2, per_second=sizes.rate)
    closes = closes_of(orders, Trades(testbed, quiet.master, sizes.rate))
    return describe(known(order.due for order in closes))


def closes_of(orders: Sequence[Order], trades: Trades) -> list[Order]:
    return [order for order in orders if trades.about(order.event)[0] == "close"]


async def _loud(testbed: Testbed, accounts: int, say: Say) -> Tenant:
    farm = testbed.farm
    owner = await farm.backend.sign_up("loud@tradecopier.test")
    first = next(iter(farm.vpses.values()))
    master = await farm.open_account(Opening(name="loud", login="loud", balance=BALANCE), owner.user_id, first)
    await farm.wait_connected([master])
    tenant = Tenant(owner, master, [])
    await _more_followers(testbed, tenant, accounts - 1, say)
    return tenant


async def _more_followers(testbed: Testbed, tenant: Tenant, count: int, say: Say) -> None:
    """Connect followers on both VPSes until there are `count`."""
    farm = testbed.farm
    vpses = list(farm.vpses.values())
    added = []
    for number in range(len(tenant.followers), count):
        opening = Opening(name=f"loud-{number}", login=f"loud-{number}", balance=BALANCE)
        added.append(await farm.open_account(opening, tenant.owner.user_id, vpses[number % len(vpses)]))
        if number % 50 == 49:
            say(f"{number + 1} of {count} accounts of the loud tenant")
            await farm.wait_connected(added[-50:])
    await farm.wait_connected(added)
    for follower in added:
        tenant.copiers[follower.account_id] = await farm.save_copier(tenant.owner, tenant.master, follower, {})
    tenant.followers += added


async def _fill_up(testbed: Testbed, tenant: Tenant, say: Say) -> None:
    """Fill every list, setting and rule of the tenant to its limit."""
    farm = testbed.farm
    say(f"filling the lists of {len(tenant.copiers)} copiers")
    settings = {"note": "s" * SETTINGS_BYTES}
    for number, (account, copier) in enumerate(tenant.copiers.items()):
        for part in at_the_limit():
            await farm.change_copier(tenant.owner, copier, part)
        if number < MAPPED_COPIERS:
            await farm.change_copier(tenant.owner, copier, mappings())
        request = {"account_id": account, "settings": settings, "name": "n" * 100}
        await farm.backend.rpc("update_account", "p_request", request, token=tenant.owner.token)
    for follower in tenant.followers:
        for kind, threshold in RULES.items():
            rule = {"kind": kind, "threshold": threshold, "action": "notify"}
            await farm.protect(tenant.owner, follower, rule)
    await farm.wait_connected([tenant.master, *tenant.followers])


@asynccontextmanager
async def _trading(testbed: Testbed, tenant: Tenant) -> AsyncIterator[None]:
    """The loud tenant's master alternately opens and closes."""
    trades = Trades(testbed, tenant.master, LOUD_RATE)
    async with running(lambda: _for_ever(trades)):
        yield


async def _for_ever(trades: Trades) -> None:
    await arrive(100_000, trades.per_second, trades.action)


__all__ = ["Sizes", "closes_of", "tenants_figures"]
