"""The stack as a whole: sign-in, users, functions, the web, restarts, and nothing left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from agent.failure import Failure
from agent.stack.database import Database
from agent.stack.keys import Keys
from agent.stack.lock import FolderLock, first_free_folder
from agent.stack.web_page import Site
from supabase import AsyncClient, AsyncClientOptions, acreate_client

if TYPE_CHECKING:
    from agent.stack.stack import Stack

GOOD_PASSWORD = "correct horse 1"


Official = Callable[[str], Awaitable[AsyncClient]]


@asynccontextmanager
async def official_clients(stack: "Stack") -> AsyncIterator[Official]:
    """Creates official clients by API key, and closes the connections that they leave open."""
    open_clients: list[httpx.AsyncClient] = []

    async def make(key: str) -> AsyncClient:
        open_clients.append(httpx.AsyncClient(timeout=20))
        options = AsyncClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=open_clients[-1])
        return await acreate_client(stack.url, key, options)

    yield make
    for client in open_clients:
        await client.aclose()


@pytest.fixture
async def official(stack: "Stack") -> AsyncIterator[Official]:
    async with official_clients(stack) as make:
        yield make


@pytest.fixture
async def own_official(own_stack: "Stack") -> AsyncIterator[Official]:
    async with official_clients(own_stack) as make:
        yield make


@pytest.fixture
async def http(stack: "Stack") -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.url, timeout=20) as client:
        yield client


@pytest.fixture
async def own_http(own_stack: "Stack") -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=own_stack.url, timeout=20) as client:
        yield client


async def test_a_user_made_by_the_admin_api_signs_in_with_the_official_client(
    stack: "Stack", official: Official
) -> None:
    admin = await official(stack.secret_key)
    others = {user.id for user in await admin.auth.admin.list_users()}
    made = await admin.auth.admin.create_user(
        {
            "email": "Someone@Example.com",
            "password": GOOD_PASSWORD,
            "email_confirm": True,
            "user_metadata": {"name": "S"},
        }
    )
    assert made.user.email == "someone@example.com"
    client = await official(stack.publishable_key)
    session = await client.auth.sign_in_with_password({"email": "someone@example.com", "password": GOOD_PASSWORD})
    assert session.user is not None
    assert session.user.id == made.user.id
    assert session.session is not None
    refreshed = await client.auth.refresh_session(session.session.refresh_token)
    assert refreshed.session is not None
    seen = await client.auth.get_user(refreshed.session.access_token)
    assert seen is not None
    assert seen.user.user_metadata == {"name": "S"}
    assert {user.id for user in await admin.auth.admin.list_users()} == others | {made.user.id}
    assert (await admin.auth.admin.get_user_by_id(made.user.id)).user.email == "someone@example.com"
    await admin.auth.admin.update_user_by_id(made.user.id, {"password": GOOD_PASSWORD + "2"})
    await client.auth.sign_in_with_password({"email": "someone@example.com", "password": GOOD_PASSWORD + "2"})
    await admin.auth.admin.delete_user(made.user.id)
    assert {user.id for user in await admin.auth.admin.list_users()} == others


async def test_the_admin_api_wants_the_secret_key(stack: "Stack", http: httpx.AsyncClient) -> None:
    body = {"email": "a@example.com", "password": GOOD_PASSWORD}
    refused = await http.post("/auth/v1/admin/users", json=body, headers={"apikey": stack.publishable_key})
    assert (refused.status_code, refused.json()["error_code"]) == (403, "not_admin")
    user = stack.keys.sign({"sub": "x", "role": "authenticated", "exp": 4102444800})
    headers = {"apikey": stack.publishable_key, "Authorization": f"Bearer {user}"}
    assert (await http.post("/auth/v1/admin/users", json=body, headers=headers)).status_code == 403
    assert (await http.get("/auth/v1/admin/users")).status_code == 401


async def test_bad_users_are_refused(stack: "Stack", http: httpx.AsyncClient) -> None:
    cases: list[tuple[object, int, str]] = [
        ({"email": "no address", "password": GOOD_PASSWORD}, 400, "validation_failed"),
        ({"email": "a@example.com", "password": "short"}, 422, "weak_password"),
        ({"password": GOOD_PASSWORD}, 400, "validation_failed"),
        ([], 400, "validation_failed"),
    ]
    for body, status, code in cases:
        response = await http.post("/auth/v1/admin/users", json=body, headers={"apikey": stack.secret_key})
        assert (response.status_code, response.json()["error_code"]) == (status, code)


async def test_making_a_user_twice_finds_it_again(stack: "Stack", official: Official) -> None:
    first, _ = await stack.create_user("twice@example.com")
    second, password = await stack.create_user("twice@example.com")
    assert first == second
    client = await official(stack.publishable_key)
    assert (
        await client.auth.sign_in_with_password({"email": "twice@example.com", "password": password})
    ).user is not None


async def test_tables_are_read_under_rls(own_stack: "Stack", database: Database, own_official: Official) -> None:
    one, password = await own_stack.create_user("one@example.com")
    with database.connect("postgres") as connection:
        connection.execute(
            "create table public.probe_note (id integer primary key, owner uuid, at timestamptz, data jsonb)"
        )
        connection.execute("alter table public.probe_note enable row level security")
        connection.execute(
            "create policy own on public.probe_note for select to authenticated using (owner = auth.uid())"
        )
        connection.execute("grant select on public.probe_note to anon, authenticated, service_role")
        connection.execute(
            "insert into public.probe_note values (1, %s, now(), '{\"a\": 1}'), (2, gen_random_uuid(), now(), null)",
            (one,),
        )
    client = await own_official(own_stack.publishable_key)
    async with asyncio.timeout(10):
        while True:  # the REST server reads the new schema a moment later
            try:
                assert (await client.table("probe_note").select("*").execute()).data == []
                break
            except Exception as error:
                if "PGRST205" not in str(error):
                    raise
                await asyncio.sleep(0.05)
    await client.auth.sign_in_with_password({"email": "one@example.com", "password": password})
    rows = (await client.table("probe_note").select("id, data").execute()).data
    assert rows == [{"id": 1, "data": {"a": 1}}]
    admin = await own_official(own_stack.secret_key)
    assert len((await admin.table("probe_note").select("id").execute()).data) == 2


async def test_realtime_answers(stack: "Stack", official: Official) -> None:
    client = await official(stack.publishable_key)
    states: list[str] = []
    joined = asyncio.Event()

    def changed(state: object, error: Exception | None) -> None:
        states.append(str(getattr(state, "value", state)))
        joined.set()

    await client.realtime.connect()
    await client.channel("lobby").subscribe(changed)
    async with asyncio.timeout(10):
        await joined.wait()
    await client.remove_all_channels()
    await client.realtime.close()
    assert states[0] == "SUBSCRIBED"


async def test_an_unbuilt_web_says_how_to_build_it(tmp_path: Path) -> None:
    app = web.Application()
    keys = Keys.load(tmp_path / "keys.json")
    Site(tmp_path / "out", "http://127.0.0.1:1", keys, tmp_path / "demo_login.json").attach(app)
    async with TestClient(TestServer(app)) as client:
        answer = await client.get("/")
        assert (answer.status, "make setup" in await answer.text()) == (200, True)
        assert (await client.get("/anything")).status == 404


async def test_the_page_learns_where_the_api_is(http: httpx.AsyncClient, stack: "Stack") -> None:
    config = (await http.get("/config.json")).json()
    assert config == {"url": stack.url, "publishable_key": stack.publishable_key}


async def test_no_path_leads_out_of_the_web_folder(http: httpx.AsyncClient) -> None:
    for path in ("/../pyproject.toml", "/%2e%2e/pyproject.toml", "/..%2fpyproject.toml", "//etc/passwd", "/%00"):
        response = await http.get(path)
        assert response.status_code in (400, 404), path
        assert "[project]" not in response.text
        assert "root:" not in response.text


async def test_it_heals_after_a_database_restart(own_stack: "Stack", own_http: httpx.AsyncClient) -> None:
    headers = {"apikey": own_stack.secret_key}
    await own_stack.stop_database()
    response = await own_http.post("/rest/v1/rpc/anything", json={}, headers=headers)
    assert (response.status_code, response.json()["code"]) == (503, "PGRST001")
    await own_stack.start_database()
    async with asyncio.timeout(15):
        await _until(own_http, "/rest/v1/rpc/anything", 404, headers)
        await own_stack.create_user("after@example.com")
        await _until(own_http, "/auth/v1/token?grant_type=password", 400, headers)


async def _until(http: httpx.AsyncClient, path: str, status: int, headers: dict[str, str]) -> None:
    """Repeat the request until the response has this status."""
    while True:
        response = await http.post(path, json={"email": "x@example.com", "password": "wrong"}, headers=headers)
        if response.status_code == status:
            return
        await asyncio.sleep(0.05)


async def test_a_database_restart_under_load_is_only_seen_as_503(
    own_stack: "Stack", own_http: httpx.AsyncClient, database: Database
) -> None:
    with database.connect("postgres") as connection:
        connection.execute("create table public.probe_written (n integer primary key)")
        connection.execute(
            "create function public.probe_write(p_n integer) returns integer language sql security definer"
            " as $$ insert into public.probe_written values (p_n) on conflict do nothing returning n $$"
        )
        connection.execute("grant execute on function public.probe_write(integer) to service_role")
    acknowledged: set[int] = set()
    answers: dict[int, str] = {}
    enough, restarted = asyncio.Event(), asyncio.Event()

    async def write(first: int) -> None:
        number = first
        while not (restarted.is_set() and acknowledged >= {number - 8}):
            response = await own_http.post(
                "/rest/v1/rpc/probe_write", json={"p_n": number}, headers={"apikey": own_stack.secret_key}
            )
            answers[response.status_code] = response.text
            if response.status_code == 200:
                acknowledged.add(number)
                number += 8
                if len(acknowledged) >= 100:
                    enough.set()
            else:
                await asyncio.sleep(0.02)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for first in range(8):
            group.create_task(write(first))
        await enough.wait()
        await own_stack.restart_database()
        restarted.set()
    assert answers.keys() <= {200, 503}, answers
    with database.connect() as connection:
        written = {row[0] for row in connection.execute("select n from public.probe_written").fetchall()}
    assert acknowledged <= written


async def test_the_gateway_comes_back_at_the_same_address(own_stack: "Stack", own_http: httpx.AsyncClient) -> None:
    url = own_stack.url
    await own_stack.restart_gateway()
    assert own_stack.url == url
    assert (await own_http.get("/health")).status_code == 200


async def test_it_listens_on_loopback_only(stack: "Stack") -> None:
    assert stack.gateway_pid is not None
    family = [psutil.Process(stack.gateway_pid), *psutil.Process(stack.gateway_pid).children(recursive=True)]
    listening = [
        c.laddr.ip for process in family for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) == {"127.0.0.1"}


async def test_two_stacks_do_not_share_a_folder(stack: "Stack") -> None:
    with pytest.raises(Failure, match="another stack is using"):
        FolderLock(stack.data).take()
    assert first_free_folder(stack.data) == stack.data.with_name(stack.data.name + "-2")


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from agent.stack.stack import Stack

async def main():
    async with Stack(Path(sys.argv[1])) as stack:
        print("up", stack.url, flush=True)
        await asyncio.sleep(100)

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background has it ignored
asyncio.run(main())
"""


def _family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_a_killed_parent_leaves_nothing_behind_and_the_next_start_works(tmp_path: Path) -> None:
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "stack")], stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline().startswith("up http://127.0.0.1:")
            family = _family(parent.pid)
            assert len(family) >= 6
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            _, alive = psutil.wait_procs(family, timeout=20)
            assert alive == []


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "stack")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("up ")
        family = _family(parent.pid)
        started = time.monotonic()
        os.kill(parent.pid, signal.SIGINT)
        parent.communicate(timeout=30)
        _, alive = psutil.wait_procs(family, timeout=5)
        assert alive == []
        assert time.monotonic() - started < 30
    log = (tmp_path / "stack" / "postgres.log").read_text()
    assert log.rstrip().endswith("database system is shut down")
