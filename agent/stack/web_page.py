"""`/`: the web as static files (web/out), or a plain page that explains how to build it."""

import json
import mimetypes
from pathlib import Path
from typing import Final

from aiohttp import web

from agent.stack.keys import Keys

#: a file next to the keys; see `Stack.show_login`
DEMO_LOGIN: Final = "demo_login.json"

MISSING: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Trade copier</title>
<body style="font: 16px/1.5 system-ui; max-width: 40rem; margin: 4rem auto; padding: 0 1rem">
<h1>The stack is running</h1>
<p>The web is not built yet. Build it with <code>make setup</code> (or <code>npm run build</code> in <code>web/</code>),
then
reload this page.</p>
<p>The API answers at <code>/rest/v1</code>, <code>/auth/v1</code>, <code>/functions/v1</code> and
<code>/realtime/v1</code>.</p>
</body></html>
"""
TYPES: Final = {
    ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css",
    ".json": "application/json", ".svg": "image/svg+xml", ".woff2": "font/woff2", ".txt": "text/plain",
    ".webmanifest": "application/manifest+json", ".ico": "image/x-icon",
    ".png": "image/png", ".map": "application/json", ".wasm": "application/wasm",
}  # fmt: skip
WITH_CHARSET: Final = ("text/", "application/json", "application/manifest+json")


class Site:
    """Serves files below `folder` only; `/config.json` gives the page the API's address and the publishable key.

    If the file `demo_login` exists, its {"email", "password"} is included, for pages of this origin only.
    """

    def __init__(self, folder: Path, url: str, keys: Keys, demo_login: Path) -> None:
        self._folder = folder
        self._demo_login = demo_login
        self._config = {"url": url, "publishable_key": keys.publishable_key}

    def attach(self, app: web.Application) -> None:
        """Mount the routes; the last one matches every path that no other route takes."""
        app.router.add_get("/config.json", self._configuration)
        app.router.add_get("/{path:.*}", self._file)

    async def _configuration(self, request: web.Request) -> web.Response:
        said: dict[str, object] = dict(self._config)
        # The browser itself sets this header and no page can: another site open in the same browser cannot read the
        # password.
        if request.headers.get("Sec-Fetch-Site") == "same-origin" and self._demo_login.exists():
            said["demo_login"] = json.loads(self._demo_login.read_text())
        return web.json_response(said, headers={"Cache-Control": "no-store", "Vary": "Sec-Fetch-Site"})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        root = self._folder.resolve()
        if not (root / "index.html").exists():
            status = 200 if request.path == "/" else 404
            return web.Response(text=MISSING, content_type="text/html", charset="utf-8", status=status)
        found = self._find(root, request.match_info["path"])
        if found is not None:
            return _send(found, 200)
        not_found = root / "404.html"
        if not_found.exists():
            return _send(not_found, 404)
        return web.Response(text="not found", status=404)

    def _find(self, root: Path, path: str) -> Path | None:
        """The file for a path: the file itself, `path.html`, or its index. None if it would lie outside the folder."""
        if "\0" in path or "\\" in path:
            return None
        trimmed = path.strip("/")
        for name in (trimmed, f"{trimmed}.html", f"{trimmed}/index.html") if trimmed else ("index.html",):
            candidate = (root / name).resolve()
            if candidate.is_relative_to(root) and candidate.is_file():
                return candidate
        return None


def _send(file: Path, status: int) -> web.FileResponse:
    content_type = TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    if content_type.startswith(WITH_CHARSET):
        content_type += "; charset=utf-8"
    # Next names these files by their content; everything else must be revalidated.
    cache = "public, max-age=31536000, immutable" if "/_next/static/" in file.as_posix() else "no-cache"
    headers = {"Content-Type": content_type, "Cache-Control": cache, "X-Content-Type-Options": "nosniff"}
    return web.FileResponse(file, status=status, headers=headers)
