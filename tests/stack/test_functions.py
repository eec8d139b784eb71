"""The functions host: entry points as hosted runs them, JWTs checked, hosted's variables set."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from agent.stack.database import Database
from agent.stack.schema import project_root

if TYPE_CHECKING:
    from agent.stack.stack import Stack

CONFIG = """
[functions.hello]
entrypoint = "../functions/hello/index.ts"

[functions.open]
verify_jwt = false
entrypoint = "../functions/open/index.ts"

[functions.exported]
verify_jwt = false
entrypoint = "../functions/exported.ts"

[functions.broken]
verify_jwt = false
entrypoint = "../functions/broken.ts"

[functions.cors]
entrypoint = "../functions/cors.ts"

[functions.off]
enabled = false
verify_jwt = false
entrypoint = "../functions/open/index.ts"
"""
HELLO = """
Deno.serve(async (request: Request) => {
  const names = ["URL", "ANON_KEY", "SERVICE_ROLE_KEY", "DB_URL", "PUBLISHABLE_KEYS"].map((name) => `SUPABASE_${name}`);
  const body = request.method === "POST" ? await request.json() : null;
  const set = names.filter((name) => Deno.env.get(name));
  const secret = request.headers.has("x-tradecopier-gateway") || Deno.env.has("TRADECOPIER_GATEWAY_SECRET");
  return Response.json({ path: new URL(request.url).pathname, body, set, secret }, { status: 201 });
});
"""
OPEN = """
import { answer } from "./answer.ts";
Deno.serve({ port: 8000 }, (request) => {
  if (request.url.endsWith("/fail")) throw new Error("on purpose");
  return new Response(answer, { headers: { "x-own": "1" } });
});
"""


# What hosted's documentation tells a function to do; it allows one origin only.
CORS = """
const cors = { "Access-Control-Allow-Origin": "https://app.example.com", "Access-Control-Allow-Headers": "apikey" };
Deno.serve((request) => {
  if (request.method === "OPTIONS") return new Response("ok", { headers: cors });
  return Response.json({ method: request.method }, { headers: { ...cors, "Access-Control-Expose-Headers": "x-own" } });
});
"""


@pytest.fixture
async def http(database: Database, tmp_path: Path) -> AsyncIterator[tuple["Stack", httpx.AsyncClient]]:
    from agent.stack.stack import Stack

    root = tmp_path / "project"
    for name, text in {
        "supabase/config.toml": CONFIG,
        "functions/hello/index.ts": HELLO,
        "functions/open/index.ts": OPEN,
        "functions/open/answer.ts": 'export const answer = "open to all";',
        "functions/exported.ts": 'export default { fetch: () => new Response("exported") };',
        "functions/cors.ts": CORS,
        "functions/broken.ts": 'throw new Error("cannot start");',
        "web/out/index.html": "<h1>page</h1>",
        "web/out/about.html": "<h1>about</h1>",
        "web/out/_next/static/a.js": "1",
        "secret.txt": "root: no",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "node_modules").symlink_to(project_root() / "node_modules")
    async with (
        Stack(tmp_path / "stack", database=database, root=root) as stack,
        httpx.AsyncClient(base_url=stack.url, timeout=30) as client,
    ):
        yield stack, client


async def test_functions_answer_as_on_hosted(http: tuple["Stack", httpx.AsyncClient]) -> None:
    stack, client = http
    refused = await client.post("/functions/v1/hello", json={})
    assert (refused.status_code, refused.json()["message"]) == (401, "Missing authorization header")
    for token in (stack.publishable_key, "a.b.c", stack.keys.sign({"role": "authenticated", "exp": 1})):
        response = await client.post("/functions/v1/hello", json={}, headers={"Authorization": f"Bearer {token}"})
        assert (response.status_code, response.json()["message"]) == (401, "Invalid JWT")
    not_text = await client.post("/functions/v1/hello", json={}, headers=[(b"Authorization", b"Bearer \xff.\xfe.x")])
    assert (not_text.status_code, not_text.json()["message"]) == (401, "Invalid JWT")
    user = stack.keys.sign({"sub": "u", "role": "authenticated", "exp": 4102444800})
    good = await client.post("/functions/v1/hello/sub?x=1", json={"a": 1}, headers={"Authorization": f"Bearer {user}"})
    assert good.status_code == 201
    assert good.json()["path"] == "/hello/sub"
    assert good.json()["body"] == {"a": 1}
    assert len(good.json()["set"]) == 5
    assert good.json()["secret"] is False

    response = await client.get("/functions/v1/open")
    assert (response.text, response.headers["x-own"]) == ("open to all", "1")
    assert (await client.get("/functions/v1/exported")).text == "exported"
    assert (await client.get("/functions/v1/open/fail")).status_code == 500
    broken = await client.get("/functions/v1/broken")
    assert (broken.status_code, broken.json()["code"]) == (503, "BOOT_ERROR")
    assert (await client.get("/functions/v1/open")).text == "open to all"
    for name in ("off", "missing", "toString"):
        assert (await client.get(f"/functions/v1/{name}")).status_code == 404
    answers = await asyncio.gather(*(client.get("/functions/v1/open") for _ in range(20)))
    assert {answer.text for answer in answers} == {"open to all"}


async def test_a_function_alone_decides_about_cors(http: tuple["Stack", httpx.AsyncClient]) -> None:
    stack, client = http
    ask = {"Origin": "https://evil.example.com", "Access-Control-Request-Method": "POST"}
    preflight = await client.options("/functions/v1/cors", headers=ask)
    assert (preflight.status_code, preflight.text) == (200, "ok")  # without a token
    assert preflight.headers["access-control-allow-origin"] == "https://app.example.com"
    assert preflight.headers["access-control-allow-headers"] == "apikey"
    bearer = {"Authorization": f"Bearer {stack.keys.anon_jwt}", "Origin": "https://evil.example.com"}
    answer = await client.post("/functions/v1/cors", json={}, headers=bearer)
    assert answer.json() == {"method": "POST"}
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    assert answer.headers["access-control-expose-headers"] == "x-own"
    # A function without CORS code is no use to a page, here as on hosted.
    silent = await client.options("/functions/v1/open", headers=ask)
    assert silent.text == "open to all"
    for headers in (silent.headers, (await client.get("/functions/v1/open", headers=ask)).headers):
        assert [name for name in headers if name.startswith("access-control")] == []
    refused = await client.post("/functions/v1/cors", json={}, headers={"Origin": "https://evil.example.com"})
    assert refused.status_code == 401
    assert "access-control-allow-origin" not in refused.headers


async def test_the_web_is_served_from_its_folder(http: tuple["Stack", httpx.AsyncClient]) -> None:
    _, client = http
    page = await client.get("/")
    assert (page.text, page.headers["content-type"]) == ("<h1>page</h1>", "text/html; charset=utf-8")
    assert (await client.get("/about")).text == "<h1>about</h1>"
    script = await client.get("/_next/static/a.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in script.headers["cache-control"]
    assert (await client.get("/nothing")).status_code == 404
    for path in ("/..%2f..%2fsecret.txt", "/%2e%2e/%2e%2e/secret.txt", "/_next/..%2f..%2f..%2fsecret.txt"):
        assert (await client.get(path)).status_code in (400, 404)
    preflight = await client.options(
        "/rest/v1/rpc/x", headers={"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    )
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, "*")
