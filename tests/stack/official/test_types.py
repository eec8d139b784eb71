"""Values of tables and views have the form that Postgres' own JSON has, digit by digit, in both directions."""

import json
from decimal import Decimal
from typing import TYPE_CHECKING

import httpx
import pytest
from official_clients import Official, PythonCall

from agent.stack.database import Database

if TYPE_CHECKING:
    from agent.stack.stack import Stack

ROWS = (
    ('"lots":0.10', '"big":9007199254740993', '"at":"2026-01-02T03:04:05.678901+00:00"', '"bytes":"\\\\xdeadbeef"'),
    ('"lots":0.31', '"big":-9223372036854775808', '"at":"2026-01-01T21:34:05+00:00"', '"bytes":"\\\\x"'),
    ('"lots":0.00000001', '"big":0', '"at":null', '"bytes":null'),
    ('"lots":"NaN"', '"big":null'),
    ('"lots":123456789.123456789012', '"big":null'),
)
OF_THE_TABLE = (
    '"money":1.10', '"wall":"2026-01-02T03:04:05"', '"day":"2026-01-02"', '"doc":{"a": 1.10}', '"tags":["x","y"]',
    '"span":"[1,4)"', '"flag":true', '"real":0.1',
)  # fmt: skip


@pytest.mark.fact("api.numbers")
@pytest.mark.parametrize("relation", ["probe_type", "probe_type_view"])
async def test_numbers_times_and_bytes_are_given_exactly_as_stored(official: Official, relation: str) -> None:
    said = await official.ask(
        f"db.from('{relation}').select().order('id')", lambda db: db.table(relation).select("*").order("id").execute()
    )
    assert (said.status, said.error) == (200, None)
    lines = said.text.splitlines()
    assert len(lines) == len(ROWS)
    for line, wanted in zip(lines, ROWS, strict=True):
        assert [text for text in wanted if text not in line] == []
    assert said.data[0]["lots"] == 0.1
    if relation == "probe_type":
        assert [text for text in OF_THE_TABLE if text not in lines[0]] == []


@pytest.mark.fact("api.numbers")
async def test_a_write_answers_with_the_same_forms(official: Official) -> None:
    key = 100 if official.name == "js" else 101
    said = await official.ask(
        f"db.from('probe_type').insert({{id: {key}, lots: '0.10', big: '9007199254740993'}}).select('lots, big, at')",
        lambda db: db.table("probe_type").insert({"id": key, "lots": "0.10", "big": "9007199254740993"}).execute(),
    )
    assert said.status == 201, said.text
    assert '"lots":0.10' in said.text
    assert '"big":9007199254740993' in said.text
    changed = await official.ask(
        f"db.from('probe_type').update({{lots: 2.50}}).eq('id', {key}).select()",
        lambda db: db.table("probe_type").update({"lots": "2.50"}).eq("id", key).execute(),
    )
    assert '"lots":2.5' in changed.text
    gone = await official.ask(
        f"db.from('probe_type').delete().eq('id', {key}).select()",
        lambda db: db.table("probe_type").delete().eq("id", key).execute(),
    )
    assert [row["id"] for row in gone.data] == [key]


@pytest.mark.fact("api.numbers")
async def test_a_cast_to_text_keeps_every_digit_for_a_page(official: Official) -> None:
    said = await official.ask(
        "db.from('probe_type').select('lots::text, whole:big::text').eq('id', 1).single()",
        lambda db: db.table("probe_type").select("lots::text, whole:big::text").eq("id", 1).single().execute(),
    )
    assert said.data == {"lots": "0.10", "whole": "9007199254740993"}


def equal(column: str, text: str) -> PythonCall:
    return lambda db: db.table("probe_type").select("id").eq(column, text).execute()


def inserting(row: dict[str, object]) -> PythonCall:
    return lambda db: db.table("probe_doc").insert(row).execute()


@pytest.mark.fact("api.numbers")
async def test_filters_take_numbers_exactly(official: Official) -> None:
    for column, text in (("lots", "0.00000001"), ("big", "9007199254740993"), ("lots", "123456789.123456789012")):
        said = await official.ask(
            f"db.from('probe_type').select('id').eq('{column}', '{text}')",
            equal(column, text),
        )
        assert len(said.data) == 1, (column, text)


@pytest.mark.fact("api.json-strings")
@pytest.mark.parametrize("text", ["123", '{"a": 1}', "hello", "null", "true", "[1]", '"', "ünï"])
async def test_a_string_written_to_jsonb_stays_a_string(official: Official, api_database: Database, text: str) -> None:
    value = json.dumps(text)
    said = await official.ask(
        f"db.from('probe_doc').insert({{doc: {value}, plain: {value}}}).select()",
        lambda db: db.table("probe_doc").insert({"doc": text, "plain": text}).execute(),
    )
    assert said.status == 201, said.text
    assert (said.data[0]["doc"], said.data[0]["plain"]) == (text, text)
    with api_database.connect("postgres") as connection:
        stored = connection.execute(
            "select jsonb_typeof(doc), doc #>> '{}' from public.probe_doc where id = %s", (said.data[0]["id"],)
        ).fetchone()
    assert stored == ("string", text)
    changed = await official.ask(
        f"db.from('probe_doc').update({{doc: {value}}}).eq('id', {said.data[0]['id']}).select()",
        lambda db: db.table("probe_doc").update({"doc": text}).eq("id", said.data[0]["id"]).execute(),
    )
    assert changed.data[0]["doc"] == text


@pytest.mark.fact("api.json-strings")
async def test_other_json_values_keep_their_kind(official: Official) -> None:
    for value in ({"a": [1, None]}, [1, "2"], 1.5, True):
        text = json.dumps(value)
        said = await official.ask(
            f"db.from('probe_doc').insert({{doc: {text}}}).select('doc')",
            inserting({"doc": value}),
        )
        assert said.data[0]["doc"] == value


async def test_a_number_in_a_body_reaches_the_table_unrounded(api: "Stack") -> None:
    async with httpx.AsyncClient(base_url=api.url, headers={"apikey": api.secret_key}) as http:
        said = await http.post(
            "/rest/v1/probe_type?select=lots,big", headers={"Prefer": "return=representation", "Content-Type":
            "application/json"}, content=b'{"id": 200, "lots": 0.123456789012345678901, "big": 9007199254740993}',
        )  # fmt: skip
        await http.delete("/rest/v1/probe_type?id=eq.200")
    assert said.json(parse_float=Decimal) == [{"lots": Decimal("0.123456789012345678901"), "big": 9007199254740993}]
