"""`tradecopier paper …` and `tradecopier copier …`: practice accounts of a running stack, by hand."""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, Literal

import click

from agent.command_group import CommandGroup
from agent.model import Placed, Side
from agent.paper.command import paper
from agent.paper.records import Request
from agent.practice.desk import Desk, PracticeAccount
from agent.practice.listing import account_lines
from agent.practice.outcome import copies_of

__all__ = ["copier", "paper"]

_stack = click.option(
    "--data",
    "folder",
    type=click.Path(path_type=Path),
    envvar="TRADECOPIER_STACK_DIR",
    help="Data folder of the running stack; needed only if several run.",
)


class Number(click.ParamType[Decimal]):
    """A decimal number above 0 with every digit as written."""

    name = "number"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            found = Decimal(str(value))
        except InvalidOperation:
            found = Decimal(0)
        if not (found.is_finite() and found > 0):
            self.fail(f"{value!r} is not a number above 0", param, ctx)
        return found


class Level(Number):
    """A price, or `none` for no level."""

    name = "price|none"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        """0 stands for `none`."""
        return Decimal(0) if value == "none" else super().convert(value, param, ctx)


NUMBER: Final = Number()
_sl = click.option("--sl", type=NUMBER, help="Stop loss, a price.")
_tp = click.option("--tp", type=NUMBER, help="Take profit, a price.")


def _run(folder: Path | None, work: Callable[[Desk], Awaitable[None]]) -> None:
    async def go() -> None:
        async with Desk.open(folder) as desk:
            await work(desk)

    asyncio.run(go())


# --- accounts -------------------------------------------------------------------------------------------------


@paper.group(cls=CommandGroup)
def account() -> None:
    """Practice accounts of the stack that `tradecopier up` runs."""


@account.command()
@click.argument("name")
@click.option("--balance", type=NUMBER, default="10000", show_default=True, help="What it begins with.")
@click.option("--currency", default="USD", show_default=True, help="Its currency, three letters.")
@click.option("--leverage", type=click.IntRange(1, 1000), default=100, show_default=True, help="1 to this.")
@click.option("--netting", is_flag=True, help="One position per symbol instead of one per trade.")
@_stack
def add(name: str, balance: Decimal, currency: str, leverage: int, netting: bool, folder: Path | None) -> None:
    """Open the practice account NAME, connect it, and wait until it can be copied."""

    async def work(desk: Desk) -> None:
        mode: Literal["hedging", "netting"] = "netting" if netting else "hedging"
        opened = await desk.add_account(name, balance=balance, currency=currency.upper(), leverage=leverage, mode=mode)
        state = (await desk.book(opened)).state
        click.echo(f"{opened.name} is connected: {state.balance:,.2f} {state.currency}, {state.mode}")

    _run(folder, work)


@account.command(name="list")
@_stack
def list_accounts(folder: Path | None) -> None:
    """Show every practice account, who copies it, and what it holds."""

    async def work(desk: Desk) -> None:
        click.echo("\n".join(await account_lines(desk)))

    _run(folder, work)


# --- trading --------------------------------------------------------------------------------------------------


@paper.command()
@click.argument("account_name", metavar="ACCOUNT")
@click.argument("symbol")
@click.argument("lots", type=NUMBER)
@_sl
@_tp
@_stack
def buy(
    account_name: str, symbol: str, lots: Decimal, sl: Decimal | None, tp: Decimal | None, folder: Path | None
) -> None:
    """Buy LOTS of SYMBOL in ACCOUNT at the market, and show what was copied."""
    _open(account_name, "buy", symbol, lots, sl, tp, folder)


@paper.command()
@click.argument("account_name", metavar="ACCOUNT")
@click.argument("symbol")
@click.argument("lots", type=NUMBER)
@_sl
@_tp
@_stack
def sell(
    account_name: str, symbol: str, lots: Decimal, sl: Decimal | None, tp: Decimal | None, folder: Path | None
) -> None:
    """Sell LOTS of SYMBOL in ACCOUNT at the market, and show what was copied."""
    _open(account_name, "sell", symbol, lots, sl, tp, folder)


@paper.command()
@click.argument("account_name", metavar="ACCOUNT")
@click.argument("ticket", required=False)
@click.option("--lots", type=NUMBER, help="Close only this volume.")
@_stack
def close(account_name: str, ticket: str | None, lots: Decimal | None, folder: Path | None) -> None:
    """Close a position of ACCOUNT, and show what was copied.

    TICKET is its number, as `paper account list` shows it. It may be left out if the account holds only one.
    """

    async def trade(desk: Desk, held_by: PracticeAccount) -> tuple[str, str]:
        position = await desk.position(held_by, ticket)
        placed = await desk.order(held_by, Request(kind="close", ticket=position.ticket, lots=lots))
        return position.ticket, f"closed {placed.lots} {position.symbol}{_at(placed)}, position {position.ticket}"

    _trade(account_name, trade, folder)


@paper.command()
@click.argument("account_name", metavar="ACCOUNT")
@click.argument("ticket", required=False)
@click.option("--sl", type=Level(), help="Stop loss, or none; left out: it stays.")
@click.option("--tp", type=Level(), help="Take profit, or none; left out: it stays.")
@_stack
def modify(account_name: str, ticket: str | None, sl: Decimal | None, tp: Decimal | None, folder: Path | None) -> None:
    """Set stop loss and take profit of a position of ACCOUNT, and show what was copied.

    TICKET is its number, as `paper account list` shows it. It may be left out if the account holds only one.
    """
    if sl is None and tp is None:
        raise click.UsageError("give --sl, --tp or both")

    async def trade(desk: Desk, held_by: PracticeAccount) -> tuple[str, str]:
        held = await desk.position(held_by, ticket)
        levels = {"sl": held.sl if sl is None else sl or None, "tp": held.tp if tp is None else tp or None}
        await desk.order(held_by, Request(kind="modify", ticket=held.ticket, sl=levels["sl"], tp=levels["tp"]))
        shown = ", ".join(f"{name} {price or 'none'}" for name, price in levels.items())
        return held.ticket, f"set {shown} of {held.symbol}, position {held.ticket}"

    _trade(account_name, trade, folder)


def _open(
    account_name: str,
    side: Side,
    symbol: str,
    lots: Decimal,
    sl: Decimal | None,
    tp: Decimal | None,
    folder: Path | None,
) -> None:
    async def trade(desk: Desk, buyer: PracticeAccount) -> tuple[str, str]:
        request = Request(kind="market", symbol=symbol, side=side, lots=lots, sl=sl, tp=tp)
        placed = await desk.order(buyer, request)
        ticket = placed.positions[-1].ticket
        done = "bought" if side == "buy" else "sold"
        return ticket, f"{done} {placed.lots} {symbol}{_at(placed)}, position {ticket}"

    _trade(account_name, trade, folder)


def _trade(
    name: str, trade: Callable[[Desk, PracticeAccount], Awaitable[tuple[str, str]]], folder: Path | None
) -> None:
    """Wait until the account is connected (what it did before would not be copied), trade, and show the copies."""

    async def work(desk: Desk) -> None:
        found = await desk.connected((await desk.account(name)).name)
        before = await desk.newest_event(found)
        ticket, done = await trade(desk, found)
        click.echo(f"{found.name}: {done}")
        for line in await copies_of(desk, found, ticket, before):
            click.echo(line)

    _run(folder, work)


def _at(placed: Placed) -> str:
    return "" if placed.price is None else f" at {placed.price}"


# --- copiers --------------------------------------------------------------------------------------------------


@click.group(cls=CommandGroup)
def copier() -> None:
    """Copiers between practice accounts."""


@copier.command(name="add")
@click.argument("master")
@click.argument("follower")
@click.option("--multiplier", type=NUMBER, help="The follower's lots for each lot of the master. [default: 1]")
@_stack
def add_copier(master: str, follower: str, multiplier: Decimal | None, folder: Path | None) -> None:
    """Copy every trade that MASTER makes from now on to FOLLOWER."""

    async def work(desk: Desk) -> None:
        first, second = await desk.connected(master), await desk.connected(follower)
        settings = {} if multiplier is None else {"sizing_mode": "multiplier", "sizing_value": str(multiplier)}
        for warning in await desk.add_copier(first, second, settings):
            click.echo(warning)
        click.echo(f"{second.name} copies {first.name} from now on")

    _run(folder, work)
