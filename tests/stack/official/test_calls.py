"""Functions: which overload is meant, counts, and an argument without a name."""

import json
from collections.abc import Mapping

import httpx
import pytest
from official_clients import Official, PythonCall

from agent.stack.stack import Stack


@pytest.mark.fact("api.overloads")
async def test_overloads_that_cannot_be_told_apart(official: Official) -> None:
    for value in ("1", "'text'"):
        said = await official.ask(
            f"db.rpc('probe_two', {{a: {value}}})", lambda db: db.rpc("probe_two", {"a": 1}).execute()
        )
        assert (said.status, said.code) == (300, "PGRST203")
        assert said.error is not None
        assert said.error["message"] == (
            "Could not choose the best candidate function between: public.probe_two(a => integer),"
            " public.probe_two(a => text)"
        )


@pytest.mark.fact("api.overloads")
async def test_one_unnamed_text_argument_takes_the_body(official: Official, api: Stack) -> None:
    said = await official.ask("db.rpc('probe_text', {'': 'x'})", lambda db: db.rpc("probe_text", {"": "x"}).execute())
    assert said.error is None, said.error
    assert said.data.replace(" ", "") == '{"":"x"}'
    async with httpx.AsyncClient(base_url=api.url, headers={"apikey": api.secret_key}) as http:
        for name, kind, wanted in (
            ("probe_text", "text/plain", '"any text"'), ("probe_bytes", "application/octet-stream", "8"),
        ):  # fmt: skip
            answer = await http.post(f"/rest/v1/rpc/{name}", content="any text", headers={"Content-Type": kind})
            assert (answer.status_code, answer.text) == (200, wanted)
        missing = await http.post("/rest/v1/rpc/probe_status", content="x", headers={"Content-Type": "text/plain"})
        assert (missing.status_code, missing.json()["code"]) == (404, "PGRST202")


@pytest.mark.fact("functions.cors")
async def test_a_function_answers_with_its_own_cors_headers_only(official: Official, api: Stack) -> None:
    for name, allowed in (("cors", "https://app.example.com"), ("silent", None)):
        said = await official.ask(f"db.functions.invoke('{name}')", invoking(name))
        assert (said.status, json.loads(said.text)) == (200, {"method": "POST"})
        async with httpx.AsyncClient(base_url=api.url) as http:
            preflight = await http.options(
                f"/functions/v1/{name}", headers={"Origin": "https://evil.example.com",
                "Access-Control-Request-Method": "POST"},
            )  # fmt: skip
        assert (preflight.status_code, preflight.text) == ((204, "") if allowed else (200, '{"method":"OPTIONS"}'))
        for headers in (said.headers, preflight.headers):
            assert headers.get("access-control-allow-origin") == allowed


def invoking(name: str) -> PythonCall:
    return lambda db: db.functions.invoke(name)


def messages_of(user: Mapping[str, object], columns: str) -> PythonCall:
    return lambda db: db.rpc("probe_messages_of", user).select(columns).eq("message", "hello").execute()


def status_of_ann(options: Mapping[str, object]) -> PythonCall:
    return lambda db: db.rpc("probe_status", {"p_name": "ann"}, **options).execute()


@pytest.mark.fact("api.call-counts")
async def test_a_call_is_counted_with_and_without_its_result(official: Official) -> None:
    arguments = "'probe_status', {p_name: 'ann'}"
    for options, more, data in (
        ("{count: 'exact'}", {"count": "exact"}, "ONLINE"),
        ("{head: true, count: 'exact'}", {"count": "exact", "head": True}, None),
        ("{get: true, count: 'exact'}", {"count": "exact", "get": True}, "ONLINE"),
    ):
        said = await official.ask(
            f"db.rpc({arguments}, {options})",
            status_of_ann(more),
        )
        assert (said.status, said.error, said.count) == (200, None, 1), options
        assert said.data == data or official.name == "python"
        assert said.text == ("" if data is None else '"ONLINE"')


@pytest.mark.fact("api.call-counts")
async def test_results_are_filtered_and_void_is_empty(official: Official) -> None:
    said = await official.ask(
        "db.rpc('probe_offline', {p_name: 'bob'}).select('username, messages(id)').eq('status', 'OFFLINE')",
        lambda db: db.rpc("probe_offline", {"p_name": "bob"}).select("username, messages(id)").eq("status", "OFFLINE")
        .execute(),
    )  # fmt: skip
    assert said.data == [{"username": "bob", "messages": []}]
    user = {"p_user": {"username": "ann", "data": None, "status": None}}
    for columns, wanted in (
        ("probe_shout", {"probe_shout": "HELLO"}),
        ("*, probe_shout", {"id": 1, "message": "hello", "username": "ann", "channel_id": 1, "probe_shout": "HELLO"}),
    ):
        said = await official.ask(
            f"db.rpc('probe_messages_of', {json.dumps(user)}).eq('message', 'hello').select('{columns}')",
            messages_of(user, columns),
        )
        assert said.data == [wanted], said.text
    said = await official.ask("db.rpc('probe_nothing')", lambda db: db.rpc("probe_nothing", {}).execute())
    assert (said.status, said.text) == (204, "")
    said = await official.ask(
        "db.rpc('probe_statu', {p_name: 'ann'})", lambda db: db.rpc("probe_statu", {"p_name": "ann"}).execute()
    )
    assert (said.status, said.code) == (404, "PGRST202")
    assert said.error is not None
    assert said.error["hint"] == "Perhaps you meant to call the function public.probe_status"
