"""Practice accounts and what they hold, as tables."""

from collections.abc import Mapping, Sequence

from agent.model import Position
from agent.paper.records import BookView
from agent.practice.desk import Desk, PracticeAccount, PracticeCopier
from agent.testbed.text_table import text_table


async def account_lines(desk: Desk) -> list[str]:
    """The verdict, a table of the accounts, and one of their positions if there are any."""
    accounts = await desk.accounts()
    if not accounts:
        return ["There is no practice account yet. Open one: tradecopier paper account add master"]
    copiers = await desk.copiers()
    books = {account.name: await desk.book(account) for account in accounts}
    names = {account.account_id: account.name for account in accounts}
    rows = [account_row(account, books[account.name], copiers, names) for account in accounts]
    lines = text_table(["account", "copies", "state", "balance", "equity"], rows, left=3)
    held = [(name, position) for name, book in books.items() for position in book.positions]
    return [await desk.verdict(), "", *lines, "", *position_lines(held)]


def account_row(
    account: PracticeAccount, book: BookView, copiers: Sequence[PracticeCopier], names: Mapping[str, str]
) -> list[str]:
    masters = [names.get(one.master_id, "?") for one in copiers if one.follower_id == account.account_id]
    return [
        account.name,
        ", ".join(masters) or "–",
        account.state,
        f"{book.balance:,.2f} {book.state.currency}",
        f"{book.equity:,.2f} {book.state.currency}",
    ]


def position_lines(held: Sequence[tuple[str, Position]]) -> list[str]:
    if not held:
        return ["No position is open."]
    rows = [
        [
            name,
            position.ticket,
            f"{'▲' if position.side == 'buy' else '▼'} {position.side}",
            position.symbol,
            str(position.lots),
            str(position.price),
            _level(position.sl),
            _level(position.tp),
        ]
        for name, position in held
    ]
    return text_table(["account", "position", "side", "symbol", "lots", "opened at", "sl", "tp"], rows, left=4)


def _level(price: object) -> str:
    return "–" if price is None else str(price)
