"""Roles and logins of the database, as hosted's documentation uses them."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from agent.stack.database import Database
from agent.stack.passwords import LOGIN_ROLES

if TYPE_CHECKING:
    from agent.stack.stack import Stack

Get = Callable[[str], Awaitable[Any]]


@pytest.mark.fact("database.roles", client="python")
def test_postgres_configures_the_roles_of_the_api(api_database: Database) -> None:
    with api_database.connect("postgres") as connection:
        for role in ("anon", "authenticated", "service_role", "authenticator"):
            name = sql.Identifier(role)
            connection.execute(sql.SQL("alter role {} set work_mem = '5MB'").format(name))
            connection.execute(sql.SQL("alter role {} reset work_mem").format(name))
        connection.execute("alter role authenticator set pgrst.db_aggregates_enabled = 'true'")
        connection.execute("alter role authenticator reset pgrst.db_aggregates_enabled")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("set role authenticator")
        for statement in (b"alter role supabase_admin set work_mem = '5MB'", b"grant supabase_auth_admin to postgres",
                          b"alter role authenticator superuser", b"alter role anon replication"):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


@pytest.mark.fact("database.roles", client="python")
async def test_settings_of_authenticator_configure_the_api(api: "Stack", api_database: Database) -> None:
    import httpx

    async with httpx.AsyncClient(base_url=api.url, headers={"apikey": api.secret_key}) as http:
        with api_database.connect("postgres") as connection:
            connection.execute("alter role authenticator set pgrst.db_aggregates_enabled = 'true'")
            connection.execute("alter role authenticator set pgrst.db_tx_end = 'commit-allow-override'")
            connection.execute("alter role authenticator set pgrst.db_plan_enabled = 'true'")
            connection.execute("alter role authenticator set pgrst.db_schemas = 'public, hidden'")
            try:
                connection.execute("notify pgrst, 'reload config'")
                while (await http.get("/rest/v1/messages?select=username,id.max()")).status_code != 200:
                    pass
                total = await http.get("/rest/v1/messages?select=username,newest:id.max(),count()")
                assert total.json() == [{"username": "ann", "newest": 2, "count": 2}]
                spread = await http.get("/rest/v1/users?select=username,messages(id.sum(),...users(status))&limit=1")
                assert spread.json() == [{"username": "ann", "messages": [{"sum": 3, "status": "ONLINE"}]}]
                headers = {"Prefer": "return=representation,tx=rollback"}
                made = await http.post("/rest/v1/probe_count", json={"id": 77, "word": "w"}, headers=headers)
                assert (made.status_code, made.json()) == (201, [{"id": 77, "word": "w"}])
                assert (await http.get("/rest/v1/probe_count?id=eq.77")).json() == []
                plan = await http.get("/rest/v1/probe_count", headers={"Accept": "application/vnd.pgrst.plan+json"})
                assert "Plan" in plan.json()[0]
                other = await http.get("/rest/v1/probe_hidden", headers={"Accept-Profile": "hidden"})
                assert (other.status_code, other.json()) == (200, [])
                feel = await http.post(
                    "/rest/v1/rpc/probe_feel", json={"p_mood": "good"}, headers={"Content-Profile": "hidden"}
                )
                assert (feel.status_code, feel.json()) == (200, "good"), "a type of the same name is in this schema"
            finally:
                for name in ("db_aggregates_enabled", "db_tx_end", "db_plan_enabled", "db_schemas"):
                    connection.execute(f"alter role authenticator reset pgrst.{name}".encode())
                connection.execute("notify pgrst, 'reload config'")
        while (await http.get("/rest/v1/messages?select=username,id.max()")).status_code == 200:
            pass
        plan = await http.get("/rest/v1/probe_count", headers={"Accept": "application/vnd.pgrst.plan+json"})
        assert (plan.status_code, plan.json()["code"]) == (406, "PGRST107")


@pytest.mark.fact("database.roles", client="python")
def test_logins_use_as_many_iterations_as_postgres_does(api_database: Database) -> None:
    """Some clients refuse a server with fewer."""
    with api_database.connect() as connection:
        rows = connection.execute(
            "select rolname, split_part(split_part(rolpassword, '$', 2), ':', 1)::integer from pg_catalog.pg_authid"
            " where rolname = any (%s)",
            (list(LOGIN_ROLES),),
        ).fetchall()
    assert {role for role, _ in rows} == set(LOGIN_ROLES)
    assert {role: count for role, count in rows if count < 4096} == {}
