"""Stores books on disk, so that they survive a restart of the broker: one SQLite file, one row per record."""

import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import orjson

from agent import paths, private_file
from agent.failure import Failure
from agent.model import Mode, Position, Quote, SymbolSpec
from agent.paper.book import Book
from agent.paper.broker import Broker
from agent.paper.messages import decode, encode
from agent.paper.passwords import Hashed
from agent.paper.profile import Profile
from agent.paper.records import Deal, JournalEntry, OrderRecord, RequestRecord

T = TypeVar("T")
_QUOTES = ""
FIX = "choose another folder with --data"


class Store:
    """`keep` collects records; `flush` writes all records since the last flush in one transaction."""

    def __init__(self, folder: Path) -> None:
        paths.require_folder(folder, FIX)
        file = folder / "books.sqlite3"
        try:
            # SQLite gives its other files the same permissions as this one
            private_file.append(file).close()
            self._connection = sqlite3.connect(file, isolation_level=None, timeout=0)
            self._take(folder)
        except (OSError, sqlite3.OperationalError) as error:
            raise paths.unwritable(file, error, FIX) from error
        # a killed process loses nothing; a power failure may lose the last moments, which is acceptable for paper money
        self._connection.executescript(
            """
            pragma journal_mode = wal;
            pragma synchronous = off;
            create table if not exists records
              (login text, kind text, key text, body blob, primary key (login, kind, key)) without rowid;
            """
        )
        self._dirty: dict[tuple[str, str, str], object] = {}

    def _take(self, folder: Path) -> None:
        """Lock the books until `close` or the end of the process: two brokers would overwrite each other's trades."""
        try:
            self._connection.execute("pragma locking_mode = exclusive")
            # in this mode the lock outlasts the transaction
            self._connection.execute("begin exclusive")
            self._connection.execute("commit")
        except sqlite3.OperationalError as error:
            self._connection.close()
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise Failure(
                f"another paper broker is using the folder {folder}",
                "stop it, or choose another folder with --data",
                code="TC620",
            ) from error

    def attach(self, broker: Broker) -> None:
        """Load the stored books into `broker`, and store every change from now on."""
        for login in self._logins():
            broker.adopt(self._load(login))
        for scope, quote in self._quotes():
            broker.market.set({quote.symbol: (quote.bid, quote.ask)}, quote.at, scope or None)
        tickets = [
            int(ticket)
            for book in broker.books.values()
            for ticket in (*book.positions, *book.orders, *(number for _, number in book.gone))
        ]
        broker.skip_tickets(max(tickets, default=0))
        for book in broker.books.values():
            self._keep_book(book)
        broker.on_book = self._keep_book
        broker.on_prices = self._keep_prices

    def flush(self) -> None:
        if not self._dirty:
            return
        rows = [(*key, encode(record)) for key, record in self._dirty.items()]
        self._dirty.clear()
        self._connection.execute("begin")
        self._connection.executemany("insert or replace into records values (?, ?, ?, ?)", rows)
        self._connection.execute("commit")

    def close(self) -> None:
        self.flush()
        self._connection.close()

    def _keep_book(self, book: Book) -> None:
        """Store a book's own data, and register for its records."""
        meta = {
            "currency": book.currency, "leverage": book.leverage, "mode": book.mode, "profile": book.profile,
            "symbols": tuple(book.symbols.values()),
            "password": book.password, "investor_password": book.investor_password,
        }  # fmt: skip
        login, dirty = book.login, self._dirty
        dirty[login, "meta", ""] = meta

        def keep(kind: str, key: str, record: object) -> None:
            dirty[login, kind, key] = record

        book.keep = keep

    def _keep_prices(self, login: str | None, quotes: Iterable[Quote]) -> None:
        for quote in quotes:
            self._dirty[_QUOTES, f"quote:{login or ''}", quote.symbol] = quote

    def _logins(self) -> list[str]:
        rows = self._connection.execute("select login from records where kind = 'meta' order by login")
        return [row[0] for row in rows]

    def _quotes(self) -> list[tuple[str, Quote]]:
        rows = self._connection.execute("select kind, body from records where login = '' and kind like 'quote:%'")
        return [(kind.removeprefix("quote:"), decode(Quote, orjson.loads(body))) for kind, body in rows]

    def _records(self, login: str, kind: str, shape: type[T]) -> list[T]:
        rows = self._connection.execute(
            "select body from records where login = ? and kind = ? order by cast(key as integer)", (login, kind)
        )
        return [decode(shape, orjson.loads(row[0])) for row in rows]

    def _load(self, login: str) -> Book:
        row = self._connection.execute(
            "select body from records where login = ? and kind = 'meta'", (login,)
        ).fetchone()
        meta = orjson.loads(row[0])
        symbols: tuple[SymbolSpec, ...] = decode(tuple[SymbolSpec, ...], meta["symbols"])
        requests = self._records(login, "request", RequestRecord)
        mode: Mode = meta["mode"]
        book = Book(
            login, currency=meta["currency"], leverage=meta["leverage"], mode=mode,
            symbols={spec.name: spec for spec in symbols}, profile=decode(Profile, meta["profile"]),
            drawn=sum(request.origin == "expert" for request in requests),
        )  # fmt: skip
        book.password = decode(Hashed | None, meta.get("password"))
        book.investor_password = decode(Hashed | None, meta.get("investor_password"))
        for request in requests:
            # requests in progress when the broker died were never executed: record and result would have been written
            # together
            lost = request.outcome == "open"
            book.restore_request(replace(request, outcome="lost") if lost else request)
        positions = self._records(login, "held", Position)
        for position in positions:
            book.restore_held(position)
        deals = self._records(login, "deal", Deal)
        history = self._records(login, "history", OrderRecord)
        journal = self._records(login, "journal", JournalEntry)
        for record in history:
            book.record(record)
        book.deals, book.journal = deals, journal
        book.operations = [deal for deal in deals if deal.entry == "balance"]
        book.balance = sum((deal.profit + deal.commission for deal in deals), book.balance)
        return book
