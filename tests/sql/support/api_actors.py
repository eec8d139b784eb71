"""The verbs of the SQL tests: act as somebody, then `can` or `cannot`.

Everybody connects as `authenticator` and takes role and claims for one transaction, exactly as the API does it.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, LiteralString, cast
from uuid import UUID

import psycopg
import pytest
from planner_harness import END_OF_REQUEST
from psycopg import sql
from psycopg.pq import ExecStatus
from psycopg.rows import dict_row

from agent.stack.database import Database

Role = Literal["anon", "authenticated", "service_role"]
Json = dict[str, Any]
Row = dict[str, Any]

_numbers = itertools.count(1)

#: what every heartbeat says besides
PROTOCOL: Json = {"protocol_version": 2}
EURUSD: Json = {
    "name": "EURUSD", "contract_size": "100000", "digits": 5, "tick_size": "0.00001", "profit_currency": "USD",
    "margin_currency": "EUR", "lots_min": "0.01", "lots_max": "50", "lots_step": "0.01",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who talks to the database through the API: a role, and for signed-in ones a user."""

    connection: psycopg.Connection[Row]
    role: Role
    user_id: UUID | None = None
    #: agents: their VPS
    vps_id: UUID | None = None

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Row]]:
        """One request: role and claims hold until it ends."""
        claims: Json = {"role": self.role}
        if self.user_id is not None:
            claims["sub"] = str(self.user_id)
        with self.connection.transaction():
            self.connection.execute(
                "select set_config('role', %s, true), set_config('request.jwt.claims', %s, true)",
                (self.role, json.dumps(claims)),
            )
            yield self.connection
            self.connection.execute(END_OF_REQUEST)

    def can(self, function: str, payload: object = None) -> Json:
        """Call `public.<function>(payload)` and return its answer. A heartbeat says which protocol it speaks."""
        if function == "vps_heartbeat" and isinstance(payload, dict):
            payload = PROTOCOL | payload
        with self.transaction() as request:
            statement = sql.SQL("select public.{}({}) as answer").format(
                sql.Identifier(function), sql.SQL("" if payload is None else "%s")
            )
            wrapped = payload if isinstance(payload, str) else json.dumps(payload, default=str)
            row = request.execute(statement, None if payload is None else (wrapped,)).fetchone()
            assert row is not None
            return cast(Json, row["answer"])

    def cannot(self, function: str, payload: object, code: str) -> str:
        """The same call is refused with this SQLSTATE; returns the message."""
        with pytest.raises(psycopg.Error) as refused:
            self.can(function, payload)
        assert refused.value.sqlstate == code, f"{function}: expected {code}: {refused.value}"
        return str(refused.value)

    def sees(self, query: LiteralString, parameters: Sequence[object] = ()) -> list[Row]:
        """Rows of a query under this actor's rights."""
        with self.transaction() as request:
            return request.execute(query, parameters).fetchall()


class Farm:
    """A database with verbs that make users, operators and VPSes the way the product makes them.

    In a database of its own everybody connects as in production; in the shared one all act on its one connection.
    """

    def __init__(self, database: Database | None, shared: psycopg.Connection[Row] | None = None) -> None:
        self._database = database
        self._open: list[psycopg.Connection[Row]] = []
        self.owner = shared or self._connect("supabase_admin")
        self._api = shared or self._connect("authenticator")
        self.anonymous = Actor(self._api, "anon")
        self.service = Actor(self._api, "service_role")
        self.rows(
            "insert into public.broker_servers (platform, server, title, address)"
            " values ('paper', 'Paper', 'Paper', '127.0.0.1:7000'), ('mt5', 'Paper', 'Paper', null) on conflict do"
            " nothing"
        )

    @classmethod
    def sharing(cls, connection: psycopg.Connection[Any]) -> "Farm":
        """In a test that is rolled back: on its connection."""
        connection.row_factory = dict_row
        return cls(None, connection)

    @property
    def database(self) -> Database:
        if self._database is None:
            pytest.fail(
                "a second connection sees nothing of a test that is rolled back: mark it @pytest.mark.own_database"
            )
        return self._database

    def _connect(self, role: str) -> psycopg.Connection[Row]:
        connection = psycopg.connect(self.database.dsn_of(role), autocommit=True, row_factory=dict_row)
        self._open.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._open:
            connection.close()

    def elsewhere(self, actor: Actor) -> Actor:
        """The same actor on a connection of its own, for races."""
        return Actor(self._connect("authenticator"), actor.role, actor.user_id, actor.vps_id)

    def rows(self, query: LiteralString, parameters: Sequence[object] = ()) -> list[Row]:
        """Rows as the database's superuser sees them, who also runs statements that move time."""
        # in the shared database a statement that fails must not break the transaction of the test
        with self.owner.transaction() if self._database is None else nullcontext():
            cursor = self.owner.execute(query, parameters)
        answered = cursor.pgresult is not None and cursor.pgresult.status == ExecStatus.TUPLES_OK
        return cursor.fetchall() if answered else []

    def row(self, query: LiteralString, parameters: Sequence[object] = ()) -> Row:
        (only,) = self.rows(query, parameters)
        return only

    def user(self, name: str = "user") -> Actor:
        row = self.row(
            "insert into auth.users (id, email) values (gen_random_uuid(), %s) returning id",
            (f"{name}-{next(_numbers)}@test.invalid",),
        )
        return Actor(self._api, "authenticated", row["id"])

    def operator(self) -> Actor:
        user = self.user("operator")
        self.rows("update auth.users set email_confirmed_at = now() where id = %s", (user.user_id,))
        self.service.can(
            "grant_operator", self.row("select email from auth.users where id = %s", (user.user_id,))["email"]
        )
        return user

    def token(self, name: str | None = None) -> str:
        return str(self.service.can("create_enrollment_token", {"name": name})["token"])

    def agent(
        self, name: str, *, platforms: Sequence[str] = ("paper",), capacity: int = 50, beating: bool = True
    ) -> Actor:
        """An enrolled VPS; `beating`: it has sent its first heartbeat."""
        user = self.user(f"agent-{name}")
        enrolled = self.service.can("enroll_vps", {
            "token": self.token(), "name": name, "platforms": list(platforms), "capacity": capacity,
            "user_id": user.user_id, "secret_hash": "0" * 64,
        })  # fmt: skip
        agent = Actor(self._api, "authenticated", user.user_id, UUID(enrolled["vps_id"]))
        if beating:
            agent.can("vps_heartbeat", {})
        return agent

    def offline_vps(self, platform: str) -> None:
        """A VPS that never sends a heartbeat, if none names the platform: without one no account of it is taken."""
        self.rows(
            "insert into public.vps_instances (name, platforms) select 'never-' || %s, array[%s::text]"
            " where not exists (select from public.vps_instances where retired_at is null and %s = any (platforms))",
            (platform, platform, platform),
        )

    def account(self, owner: Actor, **fields: object) -> UUID:
        request: Json = {
            "platform": "paper",
            "server": "Paper",
            "login": str(next(_numbers)),
            "password": "swordfish",
        } | fields
        self.offline_vps(str(request["platform"]))
        return UUID(owner.can("connect_account", request)["account_id"])

    def assignment(self, account: UUID) -> Row:
        return self.row("select * from public.account_vps_assignments where account_id = %s", (account,))

    def vps(self, agent: Actor) -> Row:
        return self.row("select * from public.vps_instances where id = %s", (agent.vps_id,))

    def session(self, agent: Actor, account: UUID) -> int:
        return int(
            agent.can("open_session", {"account_id": account, "epoch": self.assignment(account)["epoch"]})["session"]
        )

    def lose_lease(self, agent: Actor, seconds: float = 1) -> None:
        """The agent's lease ended `seconds` ago."""
        self.rows(
            "update public.vps_instances set lease_expires_at = now() - make_interval(secs => %s) where id = %s",
            (seconds, agent.vps_id),
        )

    def maintain(self, *, gap: float = 3) -> Json:
        """One run of maintain(), the last one being `gap` seconds ago."""
        self.rows(
            "update private.clockwork set last_run_at = now() - make_interval(secs => %s) where name = 'maintain'",
            (gap,),
        )
        return cast(Json, self.row("select private.maintain() as answer")["answer"])

    def sent(self, topic: str, event: str | None = None) -> list[Row]:
        """Broadcasts to a topic so far."""
        return self.rows(
            "select event, payload from realtime.messages where topic = %s and private and (%s::text is null or"
            " event = %s)"
            " order by inserted_at",
            (topic, event, event),
        )

    def clear_broadcasts(self) -> None:
        self.rows("delete from realtime.messages where true")
