"""Practice accounts of a running stack, as their user: through the public functions, and at the practice broker."""

import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import httpx

from agent.failure import Failure
from agent.model import Mode, Placed, Position, Rejected
from agent.paper.client import PaperClient, PaperLost, PaperRefused
from agent.paper.records import BookView, Request
from agent.practice import running
from agent.practice.farm import PLATFORM, SERVER
from agent.testbed.supabase_client import Backend
from agent.testbed.waiting import wait_for

CONNECT_S: Final = 60.0
NOT_FOUND: Final = "TC671"
REFUSED: Final = "TC672"
NOT_CONNECTED: Final = "TC673"
UNKNOWN: Final = "TC675"


@dataclass(frozen=True, slots=True, kw_only=True)
class PracticeAccount:
    """A connected practice account; `login` names its book at the broker."""

    account_id: str
    name: str
    login: str
    status: str
    status_reason: str | None

    @property
    def state(self) -> str:
        return self.status if self.status_reason is None else f"{self.status} ({self.status_reason})"


@dataclass(frozen=True, slots=True, kw_only=True)
class PracticeCopier:
    copier_id: str
    master_id: str
    follower_id: str
    mode: str


class Desk:
    """Calls as the stack's trader, and the practice broker as the person in front of a terminal."""

    def __init__(self, backend: Backend, token: str, broker: PaperClient) -> None:
        self._backend = backend
        self._token = token
        self.broker = broker

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path | None) -> "AsyncIterator[Desk]":
        """`folder`: the data folder of the stack; None: the only one that runs. Raises `Failure`."""
        stack = running.find(folder)
        if not stack.paper:
            raise Failure(
                "this stack runs without practice accounts",
                "stop it, and start it with `tradecopier up` (without --no-practice)",
                code=running.NOT_RUNNING,
            )
        try:
            async with AsyncExitStack() as ends:
                backend = await ends.enter_async_context(Backend(stack.url, stack.publishable_key, ""))
                person = await backend.sign_in(stack.email, stack.password)
                broker = await ends.enter_async_context(await PaperClient.connect(stack.paper, stack.paper_token))
                yield cls(backend, person.token, broker)
        except (httpx.HTTPError, PaperLost, OSError, TimeoutError) as error:
            raise Failure(
                f"the stack stopped answering ({type(error).__name__})",
                "see the terminal where `tradecopier up` runs, then try again",
                code=running.NOT_RUNNING,
            ) from error

    # --- accounts -------------------------------------------------------------------------------------------

    async def accounts(self) -> list[PracticeAccount]:
        """The accounts at the practice broker, the oldest first, with their status as it is now."""
        query = {
            "select": "id,name,login", "platform": f"eq.{PLATFORM}", "server": f"eq.{SERVER}", "removed_at": "is.null",
            "order": "created_at",
        }  # fmt: skip
        rows = await self._rows("trading_accounts", query)
        query = {"select": "account_id,status,reason,waits_for", "platform": f"eq.{PLATFORM}"}
        now = {str(row["account_id"]): row for row in await self._rows("account_status", query)}
        found = []
        for row in rows:
            state = now.get(str(row["id"]))
            if state is not None:  # else it was removed between the two
                # the words of "code: words"
                why = re.sub(r"^[a-z][a-z0-9_]+: ", "", str(state["reason"] or state["waits_for"] or "")) or None
                found.append(
                    PracticeAccount(
                        account_id=str(row["id"]),
                        name=str(row["name"]),
                        login=str(row["login"]),
                        status=str(state["status"]),
                        status_reason=why,
                    )
                )
        return found

    async def verdict(self) -> str:
        """Whether anything is wrong now: the sentence that the page begins with."""
        answer = await self._backend.rpc("verdict", "p_request", {}, token=self._token)
        return f"{answer['text']}."

    async def account(self, name: str) -> PracticeAccount:
        """The account of this name, in upper or lower case. Raises `Failure` (TC671)."""
        accounts = await self.accounts()
        for account in accounts:
            if account.name.casefold() == name.casefold():
                return account
        known = f"; there are {', '.join(one.name for one in accounts)}" if accounts else ""
        raise Failure(
            f"there is no practice account {name}{known}",
            f"open it with `tradecopier paper account add {name}`",
            code=NOT_FOUND,
        )

    async def add_account(
        self, name: str, *, balance: Decimal, currency: str, leverage: int, mode: Mode
    ) -> PracticeAccount:
        """Open an account at the broker and connect it, as a user would: with its login and password.

        A book that the broker still has (its account was removed) is connected again, with its trades.
        """
        if any(account.name.casefold() == name.casefold() for account in await self.accounts()):
            raise Failure(
                f"the practice account {name} exists already",
                "choose another name, or see `tradecopier paper account list`",
                code=REFUSED,
            )
        password = secrets.token_urlsafe(12)
        login = next((one for one in await self.broker.books() if one.casefold() == name.casefold()), None)
        try:
            if login is None:
                login = name
                await self.broker.open_book(name, currency=currency, balance=balance, leverage=leverage, mode=mode)
            await self.broker.set_passwords(login, password=password)
        except PaperRefused as error:
            raise Failure(
                f"the practice broker opened no account {name}: {error}", "change that option", code=REFUSED
            ) from error
        request = {
            "platform": PLATFORM, "server": SERVER, "login": login, "password": password, "name": name,
            "mode": mode, "currency": currency,
        }  # fmt: skip
        await self._backend.rpc("connect_account", "p_account", request, token=self._token)
        return await self.connected(name)

    async def connected(self, name: str) -> PracticeAccount:
        """The account, once its agent has logged in and read it. Raises `Failure` (TC671, TC673)."""

        async def look() -> PracticeAccount | None:
            account = await self.account(name)
            if account.status == "halted":
                raise Failure(f"{name} is {account.state}", "see `tradecopier paper account list`", code=NOT_CONNECTED)
            query = {"select": "name", "account_id": f"eq.{account.account_id}", "limit": "1"}
            ready = account.status == "connected" and await self._rows("account_symbols", query)
            return account if ready else None

        found = await wait_for(f"{name} is connected", look, CONNECT_S)
        if found is None:
            account = await self.account(name)
            raise Failure(
                f"{name} did not connect within {CONNECT_S:.0f} s: it is {account.state}",
                "see agent/agent.log in the data folder of `tradecopier up`, and try again",
                code=NOT_CONNECTED,
            )
        return found

    async def book(self, account: PracticeAccount) -> BookView:
        """Figures, positions and symbols at the broker. Raises `Failure` (TC672) if it does not know the account."""
        try:
            return await self.broker.book(account.login)
        except PaperRefused as error:
            raise Failure(
                f"the practice broker does not know {account.name}: {error}", "open another account", code=REFUSED
            ) from error

    # --- copiers ----------------------------------------------------------------------------------------------

    async def copiers(self) -> list[PracticeCopier]:
        query = {"select": "id,master_account_id,follower_account_id,mode", "removed_at": "is.null"}
        return [
            PracticeCopier(
                copier_id=str(row["id"]),
                master_id=str(row["master_account_id"]),
                follower_id=str(row["follower_account_id"]),
                mode=str(row["mode"]),
            )
            for row in await self._rows("copiers", query)
        ]

    async def add_copier(
        self, master: PracticeAccount, follower: PracticeAccount, settings: Mapping[str, object]
    ) -> Sequence[str]:
        """Make a copier; its warnings, a sentence each. Raises `Failure` with the database's words."""
        ends = {"master_account_id": master.account_id, "follower_account_id": follower.account_id}
        answer = await self._backend.rpc("save_copier", "p_copier", {**ends, **settings}, token=self._token)
        warnings = answer.get("warnings")
        return [str(one) for one in warnings] if isinstance(warnings, list) else []

    # --- trading ----------------------------------------------------------------------------------------------

    async def order(self, account: PracticeAccount, request: Request) -> Placed:
        """Trade as the account's human. Raises `Failure` (TC672: the broker's reason; TC675: no answer)."""
        try:
            answer = await self.broker.submit(account.login, request)
        except (PaperLost, TimeoutError) as error:
            raise Failure(
                f"the practice broker did not answer: it is not known whether the order of {account.name} was executed",
                "look at `tradecopier paper account list` before you trade again",
                code=UNKNOWN,
            ) from error
        if isinstance(answer, Rejected):
            raise await self._refusal(account, request, answer)
        return answer

    async def _refusal(self, account: PracticeAccount, request: Request, answer: Rejected) -> Failure:
        symbols = {spec.name: spec for spec in (await self.book(account)).symbols}
        spec = symbols.get(request.symbol or "")
        match answer.reason:
            case "unknown_symbol":
                fix = f"choose one of {', '.join(sorted(symbols))}"
            case "invalid_volume" if spec is not None:
                fix = f"choose {spec.lots_min} to {spec.lots_max} lots in steps of {spec.lots_step}"
            case "no_money":
                fix = "choose fewer lots"
            case _:
                fix = "docs/errors.md explains it, under Refused by the broker"
        return Failure(f"the practice broker refused the order of {account.name}: {answer.message}", fix, code=REFUSED)

    async def position(self, account: PracticeAccount, ticket: str | None) -> Position:
        """The position of this number; None: the only one that the account holds. Raises `Failure` (TC671)."""
        held = (await self.book(account)).positions
        found = [one for one in held if ticket in (None, one.ticket)]
        if len(found) == 1:
            return found[0]
        if not held:
            fix = f"open one with `tradecopier paper buy {account.name} EURUSD 0.10`"
            raise Failure(f"{account.name} holds no position", fix, code=NOT_FOUND)
        which = f"no position {ticket}, but" if ticket is not None else f"{len(held)} positions:"
        listed = "; ".join(f"{one.ticket} {one.side} {one.lots} {one.symbol}" for one in held)
        raise Failure(f"{account.name} holds {which} {listed}", "name one by its number", code=NOT_FOUND)

    # --- what became of it ------------------------------------------------------------------------------------

    async def newest_event(self, account: PracticeAccount) -> int:
        """Number of the account's newest event; 0: it has none."""
        query = {"select": "id", "account_id": f"eq.{account.account_id}", "order": "id.desc", "limit": "1"}
        rows = await self._rows("trade_events", query)
        return int(str(rows[0]["id"])) if rows else 0

    async def results(self, account: PracticeAccount, ticket: str, after: int) -> list[Mapping[str, object]]:
        """Rows of `copied_trades` about this position of the master, from events later than number `after`."""
        query = {
            "select": "event_id,copier_id,event,status,reason_words,message,side,symbol,filled_lots,fill_price",
            "master_account_id": f"eq.{account.account_id}", "master_ticket": f"eq.{ticket}",
            "event_id": f"gt.{after}", "order": "event_id",
        }  # fmt: skip
        return await self._rows("copied_trades", query)

    async def _rows(self, table: str, query: Mapping[str, str]) -> list[Mapping[str, object]]:
        return await self._backend.rows(table, query, token=self._token)
