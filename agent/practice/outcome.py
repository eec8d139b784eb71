"""What became of a trade at the master: a line per copier, as soon as each has ended."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from agent.practice.desk import Desk, PracticeAccount
from agent.testbed.waiting import wait_for

COPIED_S: Final = 15.0
#: statuses of copied_trades in which something may still change
IN_FLIGHT: Final = "in_flight"


async def copies_of(desk: Desk, master: PracticeAccount, ticket: str, after: int) -> list[str]:
    """Wait until the trade has ended at every follower, and describe each result.

    `after`: number of the master's newest event before the trade.
    """
    names = {account.account_id: account.name for account in await desk.accounts()}
    followers = {
        copier.copier_id: names.get(copier.follower_id, "another account")
        for copier in await desk.copiers()
        if copier.master_id == master.account_id and copier.mode != "off"
    }
    if not followers:
        return [f"nothing copies {master.name} yet → tradecopier copier add {master.name} FOLLOWER"]
    latest: dict[str, Mapping[str, object]] = {}

    async def look() -> bool | None:
        for row in await desk.results(master, ticket, after):
            latest[str(row["copier_id"])] = row
        ended = [copier for copier, row in latest.items() if row["status"] != IN_FLIGHT]
        return True if set(followers) <= set(ended) else None

    await wait_for("every copy has ended", look, COPIED_S)
    return [describe(name, latest.get(copier)) for copier, name in followers.items()]


def describe(follower: str, row: Mapping[str, object] | None) -> str:
    """One result as a line; `row`: of the view `copied_trades`."""
    if row is None:
        return f"{follower}: nothing has come of it within {COPIED_S:.0f} s → see the page"
    if row["status"] == IN_FLIGHT:
        return (
            f"{follower}: still in flight after {COPIED_S:.0f} s ({row['reason_words'] or 'being sent'}) → see the page"
        )
    if row["status"] in ("copied", "partly"):
        partly = f", only a part: {row['reason_words']}" if row["status"] == "partly" else ""
        return f"copied to {follower}: {_done(row)}{partly}"
    if row["status"] == "nothing_to_do":
        return f"{follower}: nothing to do ({row['reason_words']})"
    said = f": {row['message']}" if row["message"] else ""
    return f"not copied to {follower}: {row['reason_words']}{said}"


def _done(row: Mapping[str, object]) -> str:
    traded = f"{_plain(row['filled_lots'])} {row['symbol']}"
    price = "" if row["fill_price"] is None else f" at {_plain(row['fill_price'])}"
    match str(row["event"]):
        case "opened" | "increased":
            return f"{'bought' if row['side'] == 'buy' else 'sold'} {traded}{price}"
        case "reduced" | "closed":
            return f"closed {traded}{price}"
        case _:
            return f"levels of {row['symbol']} set"


def _plain(value: object) -> str:
    """A number without zeros at its end; an average has many."""
    return f"{Decimal(str(value)).normalize():f}" if value is not None else "?"
