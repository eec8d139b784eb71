"""The RPC path: roles, timeouts, read-only, limits and errors as on hosted, with the official client and raw HTTP."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
from postgrest import APIError, AsyncPostgrestClient

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer

if TYPE_CHECKING:
    from agent.stack.stack import Stack

FUNCTIONS = """
create function public.probe_echo(p_value jsonb) returns jsonb language sql as $$ select p_value $$;
create function public.probe_add(p_a integer, p_b integer default 10) returns integer language sql stable
  as $$ select p_a + p_b $$;
create function public.probe_overload(p_a integer) returns text language sql as $$ select 'one' $$;
create function public.probe_overload(p_a integer, p_b integer) returns text language sql as $$ select 'two' $$;
create function public.probe_rows(p_count integer) returns table (n integer, t text) language sql stable
  as $$ select i, 'row ' || i from generate_series(1, p_count) i $$;
create function public.probe_numbers(p_count integer) returns setof integer language sql stable
  as $$ select generate_series(1, p_count) $$;
create function public.probe_void() returns void language sql as $$ select $$;
create function public.probe_raw(jsonb) returns jsonb language sql as $$ select $1 $$;
create function public.probe_who() returns jsonb language sql stable as $$
  select jsonb_build_object('role', current_user, 'uid', auth.uid(), 'claims', auth.jwt(),
    'timeout', current_setting('statement_timeout'), 'read_only', current_setting('transaction_read_only'),
    'path', current_setting('request.path'), 'method', current_setting('request.method'))
$$;
create function public.probe_sleep(p_seconds numeric) returns void language sql as $$ select pg_sleep(p_seconds) $$;
create function public.probe_own_timeout() returns text language plpgsql set statement_timeout = '150ms' as $$
  begin perform pg_sleep(5); return 'late'; end $$;
create table public.probe_log (n integer);
create function public.probe_write(p_n integer) returns integer language sql security definer as $$
  insert into public.probe_log values (p_n) returning n $$;
create function public.probe_write_stable(p_n integer) returns integer language plpgsql stable security definer as $$
  begin insert into public.probe_log values (p_n); return p_n; end $$;
create function public.probe_raise(p_code text) returns void language plpgsql as $$
  begin raise exception 'it went wrong' using errcode = p_code, detail = 'the detail', hint = 'the hint'; end $$;
create function public.probe_secret() returns integer language sql as $$ select 1 $$;
revoke execute on function public.probe_secret() from public, anon, authenticated;
create function public.probe_array(p_values integer[], p_at timestamptz) returns jsonb language sql
  as $$ select jsonb_build_object('sum', (select sum(v) from unnest(p_values) v), 'at', p_at) $$;
grant execute on all functions in schema public to anon, authenticated, service_role;
revoke execute on function public.probe_secret() from public, anon, authenticated;
"""


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer, template_database: Database) -> Iterator[Database]:
    """One stack for all tests here: none of them changes data that another reads."""
    copy = Database.create(postgres_server, "test_rpc", template_database)
    with copy.connect("postgres") as connection:
        connection.execute(FUNCTIONS.encode())
    yield copy
    copy.drop()


@pytest.fixture(scope="module")
def stack(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Stack"]:
    from agent.stack.stack import Stack

    running = Stack(tmp_path_factory.mktemp("rpc"), database=database)
    try:
        asyncio.run(running.start())
        yield running
    finally:
        asyncio.run(running.close())


@pytest.fixture
async def http(stack: "Stack") -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.url, headers={"apikey": stack.publishable_key}, timeout=20) as client:
        yield client


async def call(http: httpx.AsyncClient, name: str, body: object = None, **headers: str) -> httpx.Response:
    return await http.post(f"/rest/v1/rpc/{name}", json=body if body is not None else {}, headers=headers)


def user_token(stack: "Stack", **claims: object) -> str:
    return stack.keys.sign(
        {"sub": "6f0b0000-0000-4000-8000-000000000001", "role": "authenticated", "exp": 4102444800} | claims
    )


async def test_results_have_the_formats_of_hosted(http: httpx.AsyncClient) -> None:
    value = {"a": 1.10, "big": 123456789012345678901234567890, "text": "ü %s", "list": [None, True]}
    assert (await call(http, "probe_echo", {"p_value": value})).json() == value
    assert (
        "123456789012345678901234567890"
        in (
            await http.post(
                "/rest/v1/rpc/probe_echo", content=b'{"p_value": {"n": 123456789012345678901234567890, "d": 1.10}}'
            )
        ).text
    )
    assert (await call(http, "probe_add", {"p_a": 1})).json() == 11
    assert (await call(http, "probe_add", {"p_a": 1, "p_b": 2})).json() == 3
    assert (await call(http, "probe_overload", {"p_a": 1})).json() == "one"
    assert (await call(http, "probe_overload", {"p_a": 1, "p_b": 2})).json() == "two"
    assert (await call(http, "probe_rows", {"p_count": 2})).json() == [{"n": 1, "t": "row 1"}, {"n": 2, "t": "row 2"}]
    assert (await call(http, "probe_numbers", {"p_count": 3})).json() == [1, 2, 3]
    assert (await call(http, "probe_array", {"p_values": [1, 2], "p_at": "2026-01-01T00:00:00Z"})).json() == {
        "sum": 3,
        "at": "2026-01-01T00:00:00+00:00",
    }
    void = await call(http, "probe_void")
    assert (void.status_code, void.content) == (204, b"")
    assert (await call(http, "probe_raw", [1, {"x": 2}])).json() == [1, {"x": 2}]
    assert (await http.get("/rest/v1/rpc/probe_add", params={"p_a": "5"})).json() == 15


async def test_rows_are_cut_at_the_limit_without_an_error(http: httpx.AsyncClient) -> None:
    response = await call(http, "probe_rows", {"p_count": 1500})
    assert len(response.json()) == 1000
    assert response.headers["Content-Range"] == "0-999/*"


async def test_filters_on_rows_are_served_by_the_full_rest_server(stack: "Stack", http: httpx.AsyncClient) -> None:
    response = await http.post("/rest/v1/rpc/probe_rows?select=n&order=n.desc&limit=2", json={"p_count": 5})
    assert response.json() == [{"n": 5}, {"n": 4}]


async def test_each_key_and_token_has_its_role(stack: "Stack", http: httpx.AsyncClient) -> None:
    anon = (await call(http, "probe_who")).json()
    assert (anon["role"], anon["timeout"], anon["read_only"], anon["method"]) == ("anon", "3s", "on", "POST")
    for key in (stack.secret_key, stack.keys.service_role_jwt):
        assert (await call(http, "probe_who", apikey=key)).json()["role"] == "service_role"
    assert (await call(http, "probe_who", apikey=stack.keys.anon_jwt)).json()["role"] == "anon"
    user = (await call(http, "probe_who", Authorization=f"Bearer {user_token(stack)}")).json()
    assert (user["role"], user["uid"], user["timeout"]) == (
        "authenticated",
        "6f0b0000-0000-4000-8000-000000000001",
        "8s",
    )
    assert user["claims"]["sub"] == user["uid"]
    again = (await call(http, "probe_who")).json()
    assert (again["role"], again["uid"]) == ("anon", None)


async def test_bad_keys_and_tokens_are_refused(stack: "Stack", http: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as bare:
        response = await bare.post("/rest/v1/rpc/probe_void", json={})
        assert (response.status_code, response.json()["message"]) == (401, "No API key found in request")
    assert (await call(http, "probe_void", apikey="sb_publishable_wrong")).status_code == 401
    assert (await call(http, "probe_void", apikey=user_token(stack))).status_code == 401
    expired = await call(http, "probe_void", Authorization=f"Bearer {user_token(stack, exp=1)}")
    assert (expired.status_code, expired.json()["code"]) == (401, "PGRST303")
    forged = await call(http, "probe_void", Authorization=f"Bearer {user_token(stack)[:-4]}AAAA")
    assert (forged.status_code, forged.json()["code"]) == (401, "PGRST301")
    superuser = await call(http, "probe_void", Authorization=f"Bearer {user_token(stack, role='supabase_admin')}")
    assert superuser.status_code == 403


@pytest.mark.parametrize(
    ("sqlstate", "status"),
    [
        ("TC103", 400),
        ("P0001", 400),
        ("PT418", 418),
        ("40001", 500),
        ("23505", 409),
        ("55P03", 500),
        ("57014", 500),
        ("22023", 400),
    ],
)
async def test_errors_have_the_code_and_status_of_hosted(http: httpx.AsyncClient, sqlstate: str, status: int) -> None:
    response = await call(http, "probe_raise", {"p_code": sqlstate})
    assert response.status_code == status
    assert response.json() == {
        "code": sqlstate,
        "message": "it went wrong",
        "details": "the detail",
        "hint": "the hint",
    }


async def test_a_missing_privilege_is_401_for_anon_and_403_for_users(stack: "Stack", http: httpx.AsyncClient) -> None:
    assert (await call(http, "probe_secret")).status_code == 401
    response = await call(http, "probe_secret", Authorization=f"Bearer {user_token(stack)}")
    assert (response.status_code, response.json()["code"]) == (403, "42501")


async def test_an_unknown_function_or_argument_is_404(http: httpx.AsyncClient) -> None:
    for name, body in (("probe_nothing", {}), ("probe_add", {"p_wrong": 1}), ("probe_add", {}), ("probe_add", [1])):
        response = await call(http, name, body)
        assert (response.status_code, response.json()["code"]) == (404, "PGRST202")


async def test_broken_json_is_400(http: httpx.AsyncClient) -> None:
    response = await http.post("/rest/v1/rpc/probe_echo", content=b'{"p_value": ')
    assert (response.status_code, response.json()["code"]) == (400, "PGRST102")


async def test_statements_time_out_by_role_and_by_function(http: httpx.AsyncClient) -> None:
    response = await call(http, "probe_sleep", {"p_seconds": 4})
    assert (response.status_code, response.json()["code"]) == (500, "57014")
    response = await call(http, "probe_own_timeout")
    assert (response.status_code, response.json()["code"]) == (500, "57014")


async def test_stable_functions_and_get_cannot_write(http: httpx.AsyncClient, database: Database) -> None:
    assert (await call(http, "probe_write", {"p_n": 1})).json() == 1
    response = await call(http, "probe_write_stable", {"p_n": 2})
    assert response.status_code in (400, 405, 500)
    response = await http.get("/rest/v1/rpc/probe_write", params={"p_n": "3"})
    assert (response.status_code, response.json()["code"]) == (405, "25006")
    with database.connect() as connection:
        assert connection.execute("select n from public.probe_log").fetchall() == [(1,)]


async def test_a_failed_call_leaves_nothing_of_its_role_behind(stack: "Stack", http: httpx.AsyncClient) -> None:
    for _ in range(20):
        await call(http, "probe_raise", {"p_code": "P0001"}, Authorization=f"Bearer {user_token(stack)}")
        who = (await call(http, "probe_who")).json()
        assert (who["role"], who["uid"]) == ("anon", None)


async def test_ten_megabytes_are_refused_clearly(http: httpx.AsyncClient) -> None:
    response = await http.post("/rest/v1/rpc/probe_echo", content=b'{"p_value": "' + b"x" * (11 * 1024 * 1024) + b'"}')
    assert (response.status_code, response.json()["code"]) == (413, "TC630")
    assert (await call(http, "probe_void")).status_code == 204


async def test_a_new_function_is_known_at_once(http: httpx.AsyncClient, database: Database) -> None:
    with database.connect("postgres") as connection:
        connection.execute("create function public.probe_new() returns integer language sql as $$ select 7 $$")
        connection.execute("grant execute on function public.probe_new() to anon")
    assert (await call(http, "probe_new")).json() == 7


async def test_many_calls_at_once_are_all_answered(http: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*(call(http, "probe_add", {"p_a": n}) for n in range(100)))
    assert [response.json() for response in responses] == [n + 10 for n in range(100)]


async def test_the_official_client_calls_and_sees_errors(stack: "Stack") -> None:
    async with AsyncPostgrestClient(f"{stack.url}/rest/v1", headers={"apikey": stack.publishable_key}) as client:
        answer = await client.rpc("probe_echo", {"p_value": "1.00"}).execute()
        assert answer.data == "1.00"
        with pytest.raises(APIError) as raised:
            await client.rpc("probe_raise", {"p_code": "TC103"}).execute()
    assert (raised.value.code, raised.value.message, raised.value.hint) == ("TC103", "it went wrong", "the hint")
