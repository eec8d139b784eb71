"""What the stack leaves away is refused in the form that the clients read, and odd input to Auth is refused."""

from typing import TYPE_CHECKING

import httpx
import pytest
from official_clients import Official

if TYPE_CHECKING:
    from agent.stack.stack import Stack


@pytest.mark.fact("auth.input")
@pytest.mark.parametrize(
    "email", ["nonsense", "a@", "@example.com", "a b@example.com", "a@-x.com", "a@b..com", "a@b@c.de"]
)
async def test_an_address_that_is_none_makes_no_user(official: Official, email: str) -> None:
    body = {"email": email, "password": "correct horse 1"}
    said = await official.ask(f"db.auth.admin.createUser({body})", lambda db: db.auth.admin.create_user(body))
    assert (said.status, said.code) == (400, "validation_failed")
    assert said.error is not None
    assert "invalid format" in said.error["message"]


@pytest.mark.fact("auth.input")
async def test_a_page_that_is_no_number(official: Official) -> None:
    said = await official.ask("db.auth.admin.listUsers({page: -1})", lambda db: db.auth.admin.list_users(page=-1))
    assert (said.status, said.code) == (400, "validation_failed")


@pytest.mark.fact("auth.left-away")
async def test_what_auth_leaves_away_says_so(official: Official) -> None:
    link = {"type": "magiclink", "email": "someone@example.com"}
    said = await official.ask(f"db.auth.admin.generateLink({link})", lambda db: db.auth.admin.generate_link(link))
    assert (said.status, said.code) == (422, "not_offered")
    assert said.error is not None
    assert "links made by the admin API" in said.error["message"]
    said = await official.ask(
        "db.auth.admin.inviteUserByEmail('someone@example.com')",
        lambda db: db.auth.admin.invite_user_by_email("someone@example.com"),
    )
    assert (said.status, said.code) == (422, "not_offered")
    said = await official.ask(
        "db.auth.signInWithSSO({domain: 'example.com'})",
        lambda db: db.auth.sign_in_with_sso({"domain": "example.com"}),
    )
    assert (said.status, said.code) == (422, "not_offered")


async def test_every_path_of_auth_answers_json(api: "Stack") -> None:
    async with httpx.AsyncClient(base_url=api.url, headers={"apikey": api.secret_key}) as http:
        for path in ("factors", "factors/x/verify", "nothing", "admin/users/x/factors", "admin/nothing", "", "signup/x",
                     "user/identities/authorize", "oauth/authorize", "token/x"):  # fmt: skip
            for method in ("GET", "POST", "PUT", "DELETE"):
                said = await http.request(method, f"/auth/v1/{path}", json={})
                assert said.status_code in (400, 404, 405, 422), (path, method, said.status_code)
                assert {"code", "error_code", "msg"} <= set(said.json()), (path, method, said.text)
        assert (await http.get("/auth/v1/.well-known/jwks.json")).json() == {"keys": []}


@pytest.mark.fact("stack.left-away")
async def test_storage_and_graphql_say_that_they_are_left_away(official: Official, api: "Stack") -> None:
    if official.name == "js":
        said = await official.ask("db.storage.listBuckets()", lambda db: None)  # type: ignore[arg-type,return-value]
        assert said.error is not None
        assert "no Storage" in said.error["message"]
    async with httpx.AsyncClient(base_url=api.url, headers={"apikey": api.secret_key}) as http:
        bucket = await http.get("/storage/v1/bucket")
        assert (bucket.status_code, bucket.json()["error"]) == (501, "not_offered")
        graph = await http.post("/graphql/v1", json={"query": "{ __typename }"})
        assert (graph.status_code, "pg_graphql" in graph.json()["errors"][0]["message"]) == (501, True)


@pytest.mark.fact("stack.left-away")
async def test_an_absent_extension_is_named_by_postgres(official: Official, api: "Stack") -> None:
    """`create extension` fails by itself; its functions are missing from the API."""
    said = await official.ask("db.rpc('http_get', {uri: 'x'})", lambda db: db.rpc("http_get", {"uri": "x"}).execute())
    assert (said.status, said.code) == (404, "PGRST202")
