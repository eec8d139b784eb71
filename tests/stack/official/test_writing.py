"""Inserts with defaults, upserts, limits of a write, and writes without a filter."""

import pytest
from official_clients import Official


@pytest.mark.fact("api.defaults")
async def test_missing_keys_get_the_columns_defaults(official: Official) -> None:
    said = await official.ask(
        "db.from('probe_doc').insert([{note: 'a'}, {doc: 1}], {defaultToNull: false}).select()",
        lambda db: db.table("probe_doc").insert([{"note": "a"}, {"doc": 1}], default_to_null=False).execute(),
    )
    assert said.status == 201, said.text
    assert [isinstance(row["id"], int) for row in said.data] == [True, True]
    assert [(row["note"], row["doc"]) for row in said.data] == [("a", None), ("none", 1)]
    said = await official.ask(
        "db.from('probe_doc').insert([{note: 'a'}, {doc: 1}]).select('note')",
        lambda db: db.table("probe_doc").insert([{"note": "a"}, {"doc": 1}]).execute(),
    )
    assert [row["note"] for row in said.data] == ["a", None]


@pytest.mark.fact("api.upsert")
async def test_an_upsert_merges_or_ignores(official: Official) -> None:
    key = 500 if official.name == "js" else 600

    async def upsert(word: str, options: str, **more: object) -> tuple[int, list[str]]:
        said = await official.ask(
            f"db.from('probe_count').upsert({{id: {key}, word: '{word}'}}, {{{options}}}).select()",
            lambda db: db.table("probe_count").upsert({"id": key, "word": word}, **more).execute(),
        )
        assert said.error is None, said.error
        return said.status, [row["word"] for row in said.data]

    assert await upsert("one", "") == (201, ["one"])
    assert await upsert("two", "onConflict: 'id'", on_conflict="id") == (200, ["two"])
    assert await upsert("three", "ignoreDuplicates: true", ignore_duplicates=True) == (201, [])
    said = await official.ask(
        f"db.from('probe_count').delete({{count: 'exact'}}).eq('id', {key})",
        lambda db: db.table("probe_count").delete(count="exact", returning="minimal").eq("id", key).execute(),
    )
    assert (said.status, said.count) == (204, 1)


@pytest.mark.fact("api.max-affected")
async def test_too_large_a_write_is_rolled_back(official: Official) -> None:
    names = [f"{official.name}{n}" for n in range(3)]
    rows = [{"username": name, "status": "ONLINE"} for name in names]
    await official.ask(f"db.from('users').insert({rows})", lambda db: db.table("users").insert(rows).execute())
    pattern = f"{official.name}%"
    said = await official.ask(
        f"db.rpc('probe_offline', {{p_name: '{pattern}'}}).maxAffected(2).select()",
        lambda db: db.rpc("probe_offline", {"p_name": pattern}).max_affected(2).execute(),
    )
    assert (said.status, said.code, said.data) == (400, "PGRST124", None)
    said = await official.ask(
        f"db.from('users').update({{status: 'OFFLINE'}}).like('username', '{pattern}').maxAffected(2).select()",
        lambda db: db.table("users").update({"status": "OFFLINE"}).like("username", pattern).max_affected(2).execute(),
    )
    assert (said.status, said.code) == (400, "PGRST124")
    said = await official.ask(
        f"db.from('users').select('status').like('username', '{pattern}')",
        lambda db: db.table("users").select("status").like("username", pattern).execute(),
    )
    assert {row["status"] for row in said.data} == {"ONLINE"}
    said = await official.ask(
        "db.rpc('probe_status', {p_name: 'ann'}).maxAffected(1)",
        lambda db: db.rpc("probe_status", {"p_name": "ann"}).max_affected(1).execute(),
    )
    assert (said.status, said.code) == (400, "PGRST128")
    said = await official.ask(
        f"db.rpc('probe_offline', {{p_name: '{pattern}'}}).maxAffected(3).select('username')",
        lambda db: db.rpc("probe_offline", {"p_name": pattern}).max_affected(3).execute(),
    )
    assert len(said.data) == 3
    gone = await official.ask(
        f"db.from('users').delete().like('username', '{pattern}').select()",
        lambda db: db.table("users").delete().like("username", pattern).execute(),
    )
    assert len(gone.data) == 3


@pytest.mark.fact("api.safe-update")
async def test_a_write_without_a_filter_is_refused(official: Official) -> None:
    said = await official.ask(
        "db.from('probe_count').update({word: 'x'})",
        lambda db: db.table("probe_count").update({"word": "x"}).execute(),
    )
    assert (said.status, said.code, said.error and said.error["message"]) == (
        400, "21000", "UPDATE requires a WHERE clause",
    )  # fmt: skip
    said = await official.ask("db.from('probe_count').delete()", lambda db: db.table("probe_count").delete().execute())
    assert (said.status, said.code) == (400, "21000")
