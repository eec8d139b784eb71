"""Counts, patterns, single rows and refusals, as both clients see them."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from official_clients import Official, PythonCall

from agent.stack.database import Database
from agent.stack.stack import Stack


def ids(filtered: Callable[[Any], Any], table: str) -> PythonCall:
    """The ids of a table's rows that the filter leaves, in order."""
    return lambda db: filtered(db.table(table).select("id")).order("id").execute()


@pytest.mark.fact("api.counts")
@pytest.mark.parametrize("kind", ["exact", "planned", "estimated"])
async def test_a_small_table_is_counted_right_in_every_way(official: Official, kind: str) -> None:
    said = await official.ask(
        f"db.from('probe_count').select('*', {{count: '{kind}'}})",
        lambda db: db.table("probe_count").select("*", count=kind).execute(),
    )
    assert (said.count, len(said.data), said.status) == (9, 9, 200)


@pytest.mark.fact("api.counts")
async def test_a_count_without_rows(official: Official) -> None:
    said = await official.ask(
        "db.from('probe_count').select('*', {count: 'exact', head: true}).gt('id', 4)",
        lambda db: db.table("probe_count").select("*", count="exact", head=True).gt("id", 4).execute(),
    )
    assert (said.count, said.text, said.headers["content-range"]) == (5, "", "0-4/5")


@pytest.mark.fact("api.any-all")
async def test_a_star_is_a_wildcard_in_lists_of_patterns_too(official: Official) -> None:
    cases = {
        "likeAnyOf('word', ['u2*', '*3'])": (lambda q: q.like_any_of("word", "u2*,*3"), [2, 3]),
        "likeAllOf('word', ['u*', '*4'])": (lambda q: q.like_all_of("word", "u*,*4"), [4]),
        "ilikeAnyOf('word', ['U5', 'U6*'])": (lambda q: q.ilike_any_of("word", "U5,U6*"), [5, 6]),
        "ilikeAllOf('word', ['U*', '*7'])": (lambda q: q.ilike_all_of("word", "U*,*7"), [7]),
        "like('word', 'u8*')": (lambda q: q.like("word", "u8*"), [8]),
        "like('word', '%9')": (lambda q: q.like("word", "%9"), [9]),
    }
    for js, (py, wanted) in cases.items():
        said = await official.ask(
            f"db.from('probe_count').select('id').{js}.order('id')",
            ids(py, "probe_count"),
        )
        assert [row["id"] for row in said.data] == wanted, js


@pytest.mark.fact("api.filters")
async def test_filters_of_every_kind(official: Official) -> None:
    cases = {
        "in('id', [1, 2])": (lambda q: q.in_("id", [1, 2]), [1, 2]),
        "in('word', ['u1', 'a,b', 'c)'])": (lambda q: q.in_("word", ["u1", "a,b", "c)"]), [1]),
        "not('id', 'in', '(1,2,3,4,5,6,7)')": (lambda q: q.not_.in_("id", [1, 2, 3, 4, 5, 6, 7]), [8, 9]),
        "or('id.eq.1,and(id.gt.7,word.neq.u9)')": (lambda q: q.or_("id.eq.1,and(id.gt.7,word.neq.u9)"), [1, 8]),
        "filter('id', 'eq', 3)": (lambda q: q.filter("id", "eq", 3), [3]),
        "match({id: 4, word: 'u4'})": (lambda q: q.match({"id": 4, "word": "u4"}), [4]),
        "textSearch('word', 'u5')": (lambda q: q.fts("word", "u5"), [5]),
        "is('word', null)": (lambda q: q.is_("word", "null"), []),
        "range(2, 3)": (lambda q: q.range(2, 3), [3, 4]),
        "limit(1)": (lambda q: q.limit(1), [1]),
    }
    for js, (py, wanted) in cases.items():
        said = await official.ask(
            f"db.from('probe_count').select('id').order('id').{js}",
            ids(py, "probe_count"),
        )
        assert (said.error, [row["id"] for row in said.data or []]) == (None, wanted), js
    for js, py, wanted in (
        ("contains('tags', ['x'])", lambda q: q.contains("tags", ["x"]), [1]),
        ("overlaps('tags', ['y', 'z'])", lambda q: q.overlaps("tags", ["y", "z"]), [1]),
        ("rangeLt('span', '[5,9)')", lambda q: q.range_lt("span", [5, 9]), [1]),
        ("contains('doc', {a: 1.1})", lambda q: q.contains("doc", {"a": 1.1}), [1]),
    ):
        said = await official.ask(
            f"db.from('probe_type').select('id').{js}",
            ids(py, "probe_type"),
        )
        assert (said.error, [row["id"] for row in said.data or []]) == (None, wanted), js


@pytest.mark.fact("api.single")
async def test_single_rows_and_csv(official: Official) -> None:
    said = await official.ask(
        "db.from('probe_count').select('word').eq('id', 3).single()",
        lambda db: db.table("probe_count").select("word").eq("id", 3).single().execute(),
    )
    assert said.data == {"word": "u3"}
    said = await official.ask(
        "db.from('probe_count').select().single()", lambda db: db.table("probe_count").select("*").single().execute()
    )
    assert (said.status, said.code, said.error and said.error["details"]) == (
        406, "PGRST116", "The result contains 9 rows",
    )  # fmt: skip
    said = await official.ask(
        "db.from('probe_count').select().eq('id', 99).maybeSingle()",
        lambda db: db.table("probe_count").select("*").eq("id", 99).maybe_single().execute(),
    )
    assert (said.data, said.error) == (None, None)
    said = await official.ask(
        "db.from('probe_count').select().lt('id', 3).order('id').csv()",
        lambda db: db.table("probe_count").select("*").lt("id", 3).order("id").csv().execute(),
    )
    assert said.text == "id,word\n1,u1\n2,u2"


@pytest.mark.fact("api.refusals")
async def test_errors_have_hosteds_codes(official: Official) -> None:
    said = await official.ask(
        "db.from('probe_counts').select()", lambda db: db.table("probe_counts").select("*").execute()
    )
    assert (said.status, said.code) == (404, "PGRST205")
    assert said.error is not None
    assert said.error["hint"] == "Perhaps you meant the table 'public.probe_count'"
    said = await official.ask(
        "db.from('probe_count').select('nothing')", lambda db: db.table("probe_count").select("nothing").execute()
    )
    assert (said.status, said.code, said.error and said.error["message"]) == (
        400, "42703", "column probe_count.nothing does not exist",
    )  # fmt: skip
    said = await official.ask(
        "db.from('probe_count').insert({id: 50, nothing: 1})",
        lambda db: db.table("probe_count").insert({"id": 50, "nothing": 1}).execute(),
    )
    assert (said.status, said.code) == (400, "PGRST204")
    said = await official.ask(
        "db.from('probe_count').insert({id: 1, word: 'again'})",
        lambda db: db.table("probe_count").insert({"id": 1, "word": "again"}).execute(),
    )
    assert (said.status, said.code) == (409, "23505")
    said = await official.ask(
        "db.from('probe_secret').select()", lambda db: db.table("probe_secret").select("*").execute(), "publishable"
    )
    assert (said.status, said.code) == (401, "42501")
    said = await official.ask(
        "db.from('probe_count').select().filter('id', 'nothing', 1)",
        lambda db: db.table("probe_count").select("*").filter("id", "nothing", 1).execute(),
    )
    assert said.status in (200, 400)


@pytest.mark.fact("api.reload")
async def test_new_tables_columns_and_functions_are_served_without_a_restart(
    official: Official, api_database: Database
) -> None:
    name = f"probe_new_{official.name}"
    js, py = f"db.from('{name}').select()", lambda db: db.table(name).select("*").execute()
    assert (await official.ask(js, py)).code == "PGRST205"
    with api_database.connect("postgres") as connection:
        connection.execute(f"create table public.{name} (id integer primary key)".encode())
        connection.execute(f"grant all on public.{name} to service_role".encode())
        assert (await official.ask(js, py)).data == []
        connection.execute(f"alter table public.{name} add lots numeric, add owner text references users".encode())
        row = {"id": 1, "lots": "0.10", "owner": "ann"}
        js = f"db.from('{name}').insert({row}).select('*, users(status)')"
        said = await official.ask(js, lambda db: db.table(name).insert(row).execute())
        assert said.status == 201, said.text
        assert '"lots":0.10' in said.text
        js = f"db.from('{name}').select('users(status)')"
        said = await official.ask(js, lambda db: db.table(name).select("users(status)").execute())
        assert said.data == [{"users": {"status": "ONLINE"}}]
        connection.execute(f"drop table public.{name}".encode())
        connection.execute("notify pgrst, 'reload schema'")


async def test_a_request_cannot_inject_sql(api: Stack) -> None:
    async with httpx.AsyncClient(base_url=api.url, headers={"apikey": api.secret_key}) as http:
        for query in (
            {"select": "id::int) from pg_authid--"},
            {"select": 'x:id"; drop table probe_count; --'},
            {"select": "id->>'a' or 1"},
            {"order": "id;select 1"},
            {"id": "in.(1);drop table probe_count"},
            {"id)": "eq.1"},
            {"word": "fts(english') or true--).x"},
            {"or": "(id.eq.1) or (1.eq.1)"},
            {"limit": "1;select 1"},
            {"select": "id", 'word"': "eq.%s"},
            {"select": '"%s",id'},
            {"select": "users(" * 500 + ")" * 500},
            {"or": "(or" * 500 + "(id.eq.1)" + ")" * 500},
            {"word": "eq.\0"},
            {"offset": "9" * 40},
            {"limit": "9" * 40},
            {"select": '""'},
            {"": "eq.1"},
            {"select": "*" * 100},
            {"order": "word.desc.nullsfirst.x"},
            {"select": 'id::text collate "C"'},
        ):
            said = await http.get("/rest/v1/probe_count", params=query)
            assert said.status_code in (200, 400, 404), (query, said.text)
            assert said.status_code != 200 or len(said.json()) <= 9
            if said.status_code != 200:
                assert said.json()["code"] in ("PGRST100", "42703", "22P02", "42704", "42601", "PGRST108", "22003"), (
                    said.text
                )
        for raw in (
            "word=eq.%ff",
            "%ff=eq.1",
            "select=%ff",
            "word=like.%e2%28%a1",
            "select=id&select=word",
            "=&&=",
            "%00=eq.1",
        ):
            said = await http.get(f"/rest/v1/probe_count?{raw}")
            assert said.status_code in (200, 400), (raw, said.text)
            assert said.headers["content-type"].startswith("application/json")
        for body in (b"\xff", b"{", b"[[]]", b"1", b"null", b'{"id": 1, "id": 2}', b'[{"id": 1}, {}]', b"[" * 5000):
            said = await http.post("/rest/v1/probe_count", content=body, headers={"Content-Type": "application/json"})
            assert said.status_code in (400, 409), (body[:20], said.text)
            said = await http.post("/rest/v1/rpc/probe_status?select=x", content=body)
            assert said.status_code in (400, 404), (body[:20], said.text)
        assert len((await http.get("/rest/v1/probe_count")).json()) == 9


@pytest.mark.parametrize("digits", ["²", "٣", "9" * 5000])
@pytest.mark.parametrize("asked", ["limit={}", "offset={}", "select=doc->{}", "id=eq.{}"])
async def test_numbers_of_any_length_and_script_are_answered_in_the_form_of_the_api(
    api: Stack, asked: str, digits: str
) -> None:
    query = httpx.QueryParams(dict([asked.format(digits).split("=", 1)]))
    headers = {"apikey": api.secret_key, "authorization": f"Bearer {api.secret_key}"}
    async with httpx.AsyncClient(base_url=api.url, headers=headers) as client:
        said = await client.get("/rest/v1/probe_type", params=query)
        assert (said.status_code < 500, said.headers["content-type"]) == (True, "application/json; charset=utf-8")
        said = await client.patch(
            "/rest/v1/probe_type?id=eq.0", json={"flag": True},
            headers=[(b"prefer", f"handling=strict,max-affected={digits}".encode())],
        )  # fmt: skip
        assert said.status_code < 500, said.text
