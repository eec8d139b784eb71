"""Edge Functions run with the packages of their lock file, or not at all."""

import re
import shutil
from pathlib import Path

import httpx
import pytest

from agent.stack.database import Database
from agent.stack.schema import project_root
from agent.stack.stack import Stack

CONFIG = """
[functions.hello]
verify_jwt = false
entrypoint = "../functions/hello/index.ts"
import_map = "../functions/deno.json"
"""
HELLO = """
import { Hono } from "hono";
const app = new Hono();
app.get("*", (context) => context.text("locked"));
Deno.serve(app.fetch);
"""


@pytest.mark.parametrize(("asked", "status"), [(None, 200), ("npm:hono@^4", 503), ("npm:hono@4.0.0", 503)])
async def test_a_function_that_asks_for_what_is_not_locked_does_not_start(
    database: Database, tmp_path: Path, asked: str | None, status: int
) -> None:
    root = tmp_path / "project"
    (root / "supabase").mkdir(parents=True)
    (root / "supabase" / "config.toml").write_text(CONFIG)
    (root / "functions" / "hello").mkdir(parents=True)
    (root / "functions" / "hello" / "index.ts").write_text(HELLO)
    for name in ("functions/deno.json", "functions/deno.lock", "package.json", "web/package.json"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(project_root() / name, root / name)
    if asked is not None:
        config = root / "functions" / "deno.json"
        config.write_text(re.sub(r"npm:hono@[^\"]+", asked, config.read_text()))
    (root / "node_modules").symlink_to(project_root() / "node_modules")
    async with (
        Stack(tmp_path / "stack", database=database, root=root) as stack,
        httpx.AsyncClient(timeout=60) as client,
    ):
        answer = await client.get(f"{stack.url}/functions/v1/hello", headers={"apikey": stack.publishable_key})
        assert (answer.status_code, answer.text == "locked") == (status, status == 200), answer.text
