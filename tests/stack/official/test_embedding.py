"""Embedded tables: only exposed schemas are seen, and each relationship is found by the name that hosted accepts."""

import json

import httpx
import pytest
from official_clients import Answer, Official

from agent.stack.stack import Stack


async def select(official: Official, table: str, columns: str, *, key: str = "secret", order: str = "id") -> Answer:
    return await official.ask(
        f"db.from('{table}').select('{columns}').order('{order}')",
        lambda db: db.table(table).select(columns).order(order).execute(),
        key,
    )


@pytest.mark.fact("api.exposed-only")
@pytest.mark.parametrize("key", ["secret", "publishable"])
async def test_names_of_hidden_schemas_do_not_collide(official: Official, key: str) -> None:
    """realtime.messages and auth.users have these names, too."""
    said = await select(official, "users", "username, messages(id, message)", key=key, order="username")
    assert said.data == [
        {"username": "ann", "messages": [{"id": 1, "message": "hello"}, {"id": 2, "message": "again"}]},
        {"username": "bob", "messages": []},
    ]
    said = await select(official, "messages", "id, users(username, status)", key=key)
    assert [row["users"]["username"] for row in said.data] == ["ann", "ann"]


@pytest.mark.fact("api.exposed-only")
async def test_a_hidden_table_cannot_be_embedded(official: Official) -> None:
    """Although a foreign key leads to it and the caller may read it."""
    said = await select(official, "users", "username, probe_hidden(id)", order="username")
    assert (said.status, said.code) == (400, "PGRST200")
    said = await select(official, "copiers", "id, system_config(*)")
    assert (said.status, said.code) == (400, "PGRST200")
    for table in ("probe_hidden", "vps_secrets", "root_key", "pg_authid", "schema_migrations"):
        assert (await select(official, table, "*")).code == "PGRST205", table


@pytest.mark.fact("api.exposed-only")
@pytest.mark.parametrize("schema", ["hidden", "private", "auth", "realtime", "vault", "pg_catalog"])
async def test_a_hidden_schema_cannot_be_chosen(official: Official, schema: str) -> None:
    said = await official.ask(
        f"db.schema('{schema}').from('users').select()",
        lambda db: db.schema(schema).table("users").select("*").execute(),
    )
    assert (said.status, said.code, said.error and said.error["message"]) == (
        406, "PGRST106", f"Invalid schema: {schema}",
    )  # fmt: skip
    called = await official.ask(
        f"db.schema('{schema}').rpc('set_setting')", lambda db: db.schema(schema).rpc("set_setting", {}).execute()
    )
    assert (called.status, called.code) == (406, "PGRST106")


@pytest.mark.fact("api.self-reference")
async def test_a_table_that_refers_to_itself(official: Official) -> None:
    said = await select(official, "probe_node", "name, children:probe_node!parent_id(name)")
    assert said.data[0] == {"name": "root", "children": [{"name": "left"}, {"name": "right"}]}
    said = await select(official, "probe_node", "name, probe_node(name)")
    assert said.data[0]["probe_node"] == [{"name": "left"}, {"name": "right"}]
    said = await select(official, "probe_node", "name, parent:parent_id(name)")
    assert [row["parent"] for row in said.data] == [None, {"name": "root"}, {"name": "root"}]


@pytest.mark.fact("api.embedding")
async def test_every_way_to_name_a_relationship(official: Official) -> None:
    said = await select(
        official, "probe_friend", "first:users!one(username), second:users!probe_friend_two_fkey(username)"
    )
    assert said.data == [{"first": {"username": "ann"}, "second": {"username": "bob"}}]
    said = await select(official, "probe_friend", "one(username), probe_friend_two_fkey(username)")
    assert said.data == [{"one": {"username": "ann"}, "probe_friend_two_fkey": {"username": "bob"}}]
    said = await select(official, "probe_friend", "users(username)")
    assert (said.status, said.code) == (300, "PGRST201")
    assert said.error is not None
    assert said.error["details"][0] == {
        "cardinality": "many-to-one", "embedding": "probe_friend with users",
        "relationship": "probe_friend_one_fkey using probe_friend(one) and users(username)",
    }  # fmt: skip
    said = await select(official, "users", "username, probe_friend!two(id)", order="username")
    assert [row["probe_friend"] for row in said.data] == [[], [{"id": 1}]]


@pytest.mark.fact("api.embedding")
async def test_many_to_many_views_and_functions_of_a_row(official: Official) -> None:
    said = await select(official, "probe_product", "name, probe_category(name)")
    assert [[one["name"] for one in row["probe_category"]] for row in said.data] == [["office", "home"], ["home"]]
    said = await select(official, "probe_message_view", "body, users(status)")
    assert said.data[0] == {"body": "hello", "users": {"status": "ONLINE"}}
    said = await select(official, "users", "username, probe_messages_of(message)", order="username")
    assert said.data[0]["probe_messages_of"] == [{"message": "hello"}, {"message": "again"}]
    said = await select(official, "messages", "probe_shout")
    assert said.data[0] == {"probe_shout": "HELLO"}
    text = f"new {official.name}"
    row = {"message": text, "username": "bob", "channel_id": 9}
    said = await official.ask(
        f"db.from('messages').insert({row}).select('*, probe_shout, users(status)')",
        lambda db: db.table("messages").insert(row).execute(),
    )
    assert said.status == 201, said.text
    # supabase-py has no select() behind insert()
    assert said.data[0].get("probe_shout", text.upper()) == text.upper()
    await official.ask(
        "db.from('messages').delete().eq('channel_id', 9)",
        lambda db: db.table("messages").delete().eq("channel_id", 9).execute(),
    )


@pytest.mark.fact("api.embedding")
async def test_functions_that_return_one_row(official: Official) -> None:
    said = await select(
        official, "users", "username, row:probe_profile_of(*), one:probe_one_profile(id)", order="username"
    )
    assert said.data == [
        {"username": "ann", "row": {"id": 1, "username": "ann"}, "one": {"id": 1}},
        {"username": "bob", "row": {"id": None, "username": None}, "one": None},
    ]
    said = await select(official, "users", "username, probe_one_profile!inner(id)", order="username")
    assert [row["username"] for row in said.data] == ["ann"]
    row = {"p_user": {"username": "ann", "data": None, "status": None}}
    said = await official.ask(
        f"db.rpc('probe_profile_of', {json.dumps(row)}).select('id, users(status)')",
        lambda db: db.rpc("probe_profile_of", row).select("id, users(status)").execute(),
    )
    assert said.data == {"id": 1, "users": {"status": "ONLINE"}}
    said = await select(official, "probe_event", "id, probe_month")
    assert said.data == [{"id": 1, "probe_month": 5}]
    said = await select(official, "probe_friend", "users!one(*), users!two(*)")
    assert (said.status, said.code) == (400, "42712")
    said = await select(official, "users", "username, messages(count)", order="username")
    assert said.data[0] == {"username": "ann", "messages": [{"count": 2}]}


@pytest.mark.fact("api.embedding")
async def test_inner_joins_spread_and_filters_on_what_is_embedded(official: Official) -> None:
    said = await official.ask(
        "db.from('users').select('username, messages!inner(id)', {count: 'exact'}).eq('messages.channel_id', 2)",
        lambda db: db.table("users").select("username, messages!inner(id)", count="exact")
        .eq("messages.channel_id", 2).execute(),
    )  # fmt: skip
    assert (said.data, said.count) == ([{"username": "ann", "messages": [{"id": 2}]}], 1)
    said = await select(official, "messages", "id, ...users(status, name:username)")
    assert said.data[0] == {"id": 1, "status": "ONLINE", "name": "ann"}
    said = await select(official, "users", "username, ...messages(ids:id)", order="username")
    assert [row["ids"] for row in said.data] == [[1, 2], []]
    said = await official.ask(
        "db.from('users').select('username, messages()').is('messages', null)",
        lambda db: db.table("users").select("username, messages()").is_("messages", "null").execute(),
    )
    assert said.data == [{"username": "bob"}]
    said = await official.ask(
        "db.from('users').select('username, messages(id)').order('id', {referencedTable: 'messages', ascending: false})"
        ".limit(1, {referencedTable: 'messages'}).order('username')",
        lambda db: db.table("users").select("username, messages(id)").order("id", desc=True, foreign_table="messages")
        .limit(1, foreign_table="messages").order("username").execute(),
    )  # fmt: skip
    assert said.data[0]["messages"] == [{"id": 2}]


async def test_json_paths_and_aggregates(api: Stack) -> None:
    async with httpx.AsyncClient(base_url=api.url, headers={"apikey": api.secret_key}) as http:
        said = await http.get("/rest/v1/users?select=data->>en,first:data->list->0->n,username&username=eq.ann")
        assert said.json() == [{"en": "ONE", "first": 1, "username": "ann"}]
        assert (await http.get("/rest/v1/users?select=username&data->>en=eq.ONE")).json() == [{"username": "ann"}]
        said = await http.get("/rest/v1/messages?select=username,id.max()")
        assert (said.status_code, said.json()["code"]) == (400, "PGRST123")
