"""The stack grants nothing: every ACL of the database is the same before it starts and after requests of every kind."""

import asyncio
from itertools import product
from typing import TYPE_CHECKING

import httpx
import pytest

from agent.stack.database import Database

if TYPE_CHECKING:
    from agent.stack.stack import Stack

GOOD_PASSWORD = "correct horse 1"
SETUP = """
create table public.probe_note (id integer primary key, owner uuid, text text);
alter table public.probe_note enable row level security;
create policy own on public.probe_note to authenticated using (owner = auth.uid()) with check (owner = auth.uid());
grant select, insert, update, delete on public.probe_note to authenticated, service_role;
create table public.probe_closed (id integer primary key);
alter table public.probe_closed enable row level security;
create view public.probe_view with (security_invoker) as select id from public.probe_note;
grant select on public.probe_view to authenticated;
create sequence public.probe_numbers;
create function public.probe_add(p_a integer, p_b integer default 1) returns integer language sql stable
  as $$ select p_a + p_b $$;
create function public.probe_rows() returns setof public.probe_note language sql stable
  as $$ select * from public.probe_note $$;
grant execute on function public.probe_add(integer, integer), public.probe_rows() to anon, authenticated, service_role;
create function public.probe_closed_call() returns integer language sql as $$ select 1 $$;
"""
# Everything that determines ownership and privileges.
ACLS = """
select 'relation ' || c.oid::regclass,
    coalesce(c.relacl::text, '') || ' ' || c.relowner::regrole || ' ' || c.relrowsecurity
  from pg_class c
union all select 'column ' || attrelid::regclass || '.' || attname, attacl::text from pg_attribute
  where attacl is not null
union all select 'schema ' || nspname, coalesce(nspacl::text, '') || ' ' || nspowner::regrole from pg_namespace
  where nspname !~ '^pg_(toast_)?temp'
union all select 'function ' || p.oid::regprocedure, coalesce(p.proacl::text, '') || ' ' || p.proowner::regrole
    || ' ' || p.prosecdef
  from pg_proc p
union all select 'type ' || t.oid::regtype, coalesce(t.typacl::text, '') || ' ' || t.typowner::regrole from pg_type t
union all select 'default of ' || defaclrole::regrole || ' in ' || defaclnamespace::regnamespace
  || ' on ' || defaclobjtype::text,
  defaclacl::text from pg_default_acl
union all select 'database ' || datname, coalesce(datacl::text, '') || ' ' || datdba::regrole from pg_database
  where datname = current_database()
union all select 'language ' || lanname, lanacl::text from pg_language
union all select 'parameter ' || parname, paracl::text from pg_parameter_acl
union all select 'policy ' || polname || ' on ' || polrelid::regclass, polroles::regrole[]::text || ' ' || polcmd::text
  from pg_policy
union all select 'role ' || rolname,
  format('%s %s %s %s %s %s', rolsuper, rolinherit, rolcreaterole, rolreplication, rolbypassrls, rolcanlogin)
  from pg_roles
union all select 'member ' || member::regrole || ' of ' || roleid::regrole,
  format('%s %s %s', admin_option, inherit_option, set_option) from pg_auth_members
"""
OUTSIDERS = ("anon=", "authenticated=", "service_role=", "{=", ",=")


def acls(database: Database) -> dict[str, str | None]:
    with database.connect() as connection:
        connection.execute("set search_path = ''")  # every name with its schema
        return dict(connection.execute(ACLS.encode()).fetchall())


@pytest.fixture
def database(database: Database) -> Database:
    with database.connect("postgres") as connection:
        connection.execute(SETUP.encode())
    return database


@pytest.fixture
def before(database: Database) -> dict[str, str | None]:
    """The ACLs of a database to which no stack has ever connected."""
    return acls(database)


def assert_nothing_granted(before: dict[str, str | None], after: dict[str, str | None]) -> None:
    assert {name: after.get(name) for name in before if after.get(name) != before[name]} == {}
    new = {name: acl for name, acl in after.items() if name not in before}
    # Auth's own tables, which it creates when it first starts, and the day partitions of realtime.messages.
    assert {
        name for name in new if not name.split()[1].startswith(("auth.", "pg_toast.", "realtime.messages_"))
    } == set()
    assert {name: acl for name, acl in new.items() if acl and any(outsider in acl for outsider in OUTSIDERS)} == {}


TABLES = ["probe_note", "probe_closed", "probe_view", "copiers", "account_symbols", "copied_trades", "no_such_table"]
READS = [
    ("GET", "", {}), ("GET", "?select=id&limit=1", {}), ("HEAD", "", {}),
    ("GET", "?select=*", {"Prefer": "count=exact"}),
    ("GET", "?select=*", {"Accept": "text/csv"}), ("GET", "?limit=1", {"Accept": "application/vnd.pgrst.object+json"}),
    ("GET", "", {"Accept-Profile": "private"}), ("GET", "", {"Accept-Profile": "auth"}), ("GET", "", {"Range": "0-1"}),
    ("OPTIONS", "", {}),
]  # fmt: skip
WRITES = [
    ("POST", "", {"Prefer": "return=representation"}), ("POST", "", {"Prefer": "resolution=merge-duplicates"}),
    ("PATCH", "?id=eq.1", {"Prefer": "return=representation"}), ("PUT", "?id=eq.1", {}), ("DELETE", "?id=eq.1", {}),
    ("POST", "", {"Content-Profile": "private"}),
]  # fmt: skip
CALLS: list[tuple[str, str, object, dict[str, str]]] = [
    ("POST", "probe_add", {"p_a": 1}, {}),
    ("GET", "probe_add?p_a=1", None, {}),
    ("POST", "probe_add", {"p_a": 1}, {"Prefer": "count=exact"}),
    ("POST", "probe_rows?select=id&limit=1", {}, {}),
    ("HEAD", "probe_rows", None, {}),
    ("POST", "probe_closed_call", {}, {}),
    ("POST", "no_such_function", {}, {}),
    ("POST", "preview_copy", {"p_request": {}}, {}),
    ("POST", "vps_heartbeat", {"p_beat": {}}, {}),
    ("POST", "set_setting", {"p_setting": {"key": "x"}}, {"Content-Profile": "private"}),
    ("POST", "is_operator", {}, {"Prefer": "count=exact"}),
]


async def _callers(stack: "Stack", client: httpx.AsyncClient) -> list[dict[str, str]]:
    """The headers of anon, a user, the service key, and of each of them with the legacy kind of key."""
    await stack.create_user("someone@example.com", GOOD_PASSWORD)
    answer = await client.post(
        "/auth/v1/token?grant_type=password",
        json={"email": "someone@example.com", "password": GOOD_PASSWORD},
        headers={"apikey": stack.publishable_key},
    )
    user = {"apikey": stack.publishable_key, "Authorization": f"Bearer {answer.json()['access_token']}"}
    keys = (stack.publishable_key, stack.secret_key, stack.keys.anon_jwt, stack.keys.service_role_jwt)
    return [user, *({"apikey": key} for key in keys)]


async def test_no_request_of_any_kind_grants_anything(
    before: dict[str, str | None], own_stack: "Stack", database: Database
) -> None:
    async with httpx.AsyncClient(base_url=own_stack.url, timeout=30) as client:
        callers = await _callers(own_stack, client)
        for caller in callers:
            for table, (method, query, more) in product(TABLES, READS):
                await client.request(method, f"/rest/v1/{table}{query}", headers=caller | more)
            for table, (method, query, more) in product(TABLES, WRITES):
                await client.request(
                    method, f"/rest/v1/{table}{query}", json={"id": 1, "text": "t"}, headers=caller | more
                )
            for method, name, body, more in CALLS:
                await client.request(method, f"/rest/v1/rpc/{name}", json=body, headers=caller | more)
            await client.get("/rest/v1/", headers=caller)
            for path in ("/auth/v1/user", "/auth/v1/settings", "/auth/v1/admin/users", "/auth/v1/nothing"):
                await client.get(path, headers=caller)
            message = {"messages": [{"topic": "t", "event": "e", "payload": {}, "private": True}]}
            await client.post("/realtime/v1/api/broadcast", json=message, headers=caller)
            await client.post("/functions/v1/enroll", json={}, headers=caller)
        signup = {"email": "new@example.com", "password": GOOD_PASSWORD}
        assert (await client.post("/auth/v1/signup", json=signup, headers=callers[1])).status_code == 200
        await client.post("/auth/v1/logout", headers=callers[0])
        # The REST server reads the schema again after DDL and must not grant anything then either.
        with database.connect("postgres") as connection:
            connection.execute("notify pgrst, 'reload schema'")
        for caller in callers[1:]:
            await client.get("/rest/v1/copiers", headers=caller)
        await own_stack.restart_gateway()
        await client.get("/rest/v1/copiers", headers=callers[2])
    assert_nothing_granted(before, acls(database))


async def test_twenty_first_requests_at_once_all_succeed(
    before: dict[str, str | None], own_stack: "Stack", database: Database
) -> None:
    token = own_stack.keys.sign(
        {"sub": "00000000-0000-4000-8000-000000000001", "role": "authenticated", "exp": 4102444800}
    )
    headers = {"apikey": own_stack.publishable_key, "Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=own_stack.url, timeout=30) as client:
        answers = await asyncio.gather(*(client.get("/rest/v1/copiers", headers=headers) for _ in range(20)))
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, "[]")] * 20
    assert_nothing_granted(before, acls(database))


async def test_who_has_no_right_on_a_table_is_told_so(own_stack: "Stack", database: Database) -> None:
    with database.connect() as connection:
        rows = connection.execute(
            "select relname, has_table_privilege('anon', oid, 'select'), has_table_privilege('authenticated', oid,"
            " 'select'),"
            " has_table_privilege('service_role', oid, 'select')"
            " from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v') order by 1"
        ).fetchall()
    token = own_stack.keys.sign(
        {"sub": "00000000-0000-4000-8000-000000000001", "role": "authenticated", "exp": 4102444800}
    )
    who = [
        ({"apikey": own_stack.publishable_key}, 401),
        ({"apikey": own_stack.publishable_key, "Authorization": f"Bearer {token}"}, 403),
        ({"apikey": own_stack.secret_key}, 403),
    ]
    seen, wanted = {}, {}
    async with httpx.AsyncClient(base_url=own_stack.url, timeout=30) as client:
        for name, *allowed in rows:
            for (headers, refused), may in zip(who, allowed, strict=True):
                answer = await client.get(f"/rest/v1/{name}?limit=1", headers=headers)
                key = (name, refused, may)
                seen[key] = answer.status_code, None if may else answer.json()["code"]
                wanted[key] = (200, None) if may else (refused, "42501")
                if not may:
                    head = await client.head(f"/rest/v1/{name}?limit=1", headers=headers)
                    assert head.status_code == refused, name
        for headers, refused in who:
            for method, query in (("POST", ""), ("PATCH", "?id=eq.1"), ("DELETE", "?id=eq.1")):
                answer = await client.request(method, f"/rest/v1/probe_closed{query}", json={"id": 1}, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (refused, "42501"), method
    assert seen == wanted
    assert {refused for _, refused, may in wanted if not may} == {401, 403}
