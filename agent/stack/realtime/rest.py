"""REST broadcast: `POST /realtime/v1/api/broadcast` (batch) and `…/{topic}/events/{event}` (single)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import orjson
from aiohttp import web

from agent.stack.realtime.frames import Broadcast
from agent.stack.realtime.hub import Hub
from agent.stack.realtime.join_fields import is_writable
from agent.stack.realtime.limits import Limits
from agent.stack.realtime.policies import Policies, Subject
from agent.stack.realtime.tokens import Identity, Refused, Verify, identify
from agent.stack.request_body import read_body

log = logging.getLogger(__name__)
_MAX_BODY_BYTES = 8_000_000
BATCH = "/realtime/v1/api/broadcast"
SINGLE = "/realtime/v1/api/broadcast/{topic}/events/{event}"
_OVER_QUOTA = "You have exceeded your rate limit"
_BATCH_TOO_LARGE = "Too many messages to broadcast, please reduce the batch size"
_OVERSIZE = "Payload size exceeds tenant limit"
_CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-headers": "authorization, x-client-info, apikey, content-type",
    "access-control-allow-methods": "POST, OPTIONS",
}


@dataclass(frozen=True, slots=True)
class BroadcastApi:
    """Both forms answer 202 with an empty body. Where the single form answers 403, the batch form silently skips."""

    hub: Hub
    policies: Policies
    limits: Limits
    verify: Verify

    def attach(self, app: web.Application) -> None:
        app.router.add_post(BATCH, self.batch)
        app.router.add_post(SINGLE, self.single)
        app.router.add_options(BATCH, _preflight)
        app.router.add_options(SINGLE, _preflight)

    def _identity(self, request: web.Request) -> Identity | None:
        """The caller, from Authorization if present, otherwise from `apikey`."""
        bearer = request.headers.get("Authorization", "")
        token = bearer[7:] if bearer.lower().startswith("bearer ") else request.headers.get("apikey", "")
        try:
            return identify(self.verify, token)
        except Refused:
            return None

    async def batch(self, request: web.Request) -> web.Response:
        identity = self._identity(request)
        if identity is None:
            return _json(401, {"message": "Unauthorized"})
        raw = await read_body(request, _MAX_BODY_BYTES)
        if isinstance(raw, web.Response):
            return raw
        body = _loads(raw)
        if body is None:
            return _json(400, {"errors": {"detail": "Bad Request"}})
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(messages, list):
            return _json(422, {"errors": {"messages": ["can't be blank"]}})
        errors = [_faults_of(entry, self.limits.payload_bytes) for entry in messages]
        if any(errors):
            return _json(422, {"errors": {"messages": errors}})
        if self.hub.messages.over:
            return _json(429, {"message": _OVER_QUOTA})
        if not self.hub.messages.fits(len(messages)):
            return _json(429, {"message": _BATCH_TOO_LARGE})
        allowed: dict[str, bool] = {}
        for entry in messages:
            private = entry.get("private") is True
            if private and entry["topic"] not in allowed:
                subject = Subject(identity.claims, {}, entry["topic"])
                allowed[entry["topic"]] = await self.policies.writable(subject, "broadcast")
            if private and not allowed[entry["topic"]]:
                continue
            key = entry.get("id")
            self._send(private, Broadcast(entry["topic"], entry["event"], orjson.dumps(entry["payload"]), key))
        return web.Response(status=202, headers=_CORS)

    async def single(self, request: web.Request) -> web.Response:
        identity = self._identity(request)
        if identity is None:
            return _json(401, {"message": "Unauthorized"})
        topic, event = request.match_info["topic"], request.match_info["event"]
        private = request.query.get("private") == "true"
        body = await read_body(request, _MAX_BODY_BYTES)
        if isinstance(body, web.Response):
            return body
        binary = request.content_type == "application/octet-stream"
        if not binary and request.content_type != "application/json":
            return _json(415, {"error": "Unsupported Media Type: use application/json or application/octet-stream"})
        if not binary and not isinstance(_loads(body), dict):
            return _json(422, {"errors": {"payload": ["is invalid"]}})
        if len(body) > self.limits.payload_bytes:
            return _json(422, {"errors": {"payload": [_OVERSIZE]}})
        if self.hub.messages.over:
            return _json(429, {"message": _OVER_QUOTA})
        if private and not await self.policies.writable(Subject(identity.claims, {}, topic), "broadcast"):
            return _json(403, {"message": "Forbidden"})
        self._send(private, Broadcast(topic, event, body, binary=binary))
        return web.Response(status=202, headers=_CORS)

    def _send(self, private: bool, item: Broadcast) -> None:
        self.hub.messages.count()
        self.hub.broadcast(private, item)


def _faults_of(entry: object, payload_bytes: int) -> dict[str, list[str]]:
    if not isinstance(entry, dict):
        return {"message": ["is invalid"]}
    errors: dict[str, list[str]] = {}
    for key in ("topic", "event"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            errors[key] = ["can't be blank"]
    payload = entry.get("payload")
    if payload is None:
        errors["payload"] = ["can't be blank"]
    elif not isinstance(payload, dict):
        errors["payload"] = ["is invalid"]
    elif not is_writable(payload, payload_bytes):
        errors["payload"] = [_OVERSIZE]
    if not isinstance(entry.get("id", ""), str | None):
        errors["id"] = ["is invalid"]
    return errors


def _loads(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _json(status: int, body: Mapping[str, object]) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=_CORS)


async def _preflight(_request: web.Request) -> web.Response:
    return web.Response(status=204, headers=_CORS)
