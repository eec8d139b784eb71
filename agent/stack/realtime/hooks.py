"""The test hook over HTTP, so that a test can inject faults into a server in another process. Service role only.

| request | body | does |
|---|---|---|
| GET /realtime/v1/test/faults | | rules with their hits, topics of open sockets |
| POST /realtime/v1/test/faults | `{"action","topic","event","delay_ms","times"}` | adds a rule, returns it with id |
| DELETE /realtime/v1/test/faults | | ends all rules |
| POST /realtime/v1/test/cut | `{"topic","code"}` (no code: TCP abort) | cuts sockets, returns their number |
| POST /realtime/v1/test/black-hole | `{"topic"}` | silences sockets |
| POST /realtime/v1/test/crash | `{"topic"}` | `phx_error` on channels |
| POST /realtime/v1/test/refuse | `{"status"}` (null: accept again) | refuses handshakes |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.stack.realtime.faults import Faults, Rule
from agent.stack.realtime.tokens import Refused, Verify, identify

_ROOT = "/realtime/v1/test"
Model = TypeVar("Model", bound=BaseModel)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")
    topic: str = "*"


class _RuleRequest(_Request):
    action: Literal["drop", "delay", "duplicate", "reorder"]
    event: str = "*"
    delay_ms: Annotated[float, Field(ge=0)] = 200
    times: Annotated[int, Field(ge=1)] | None = None


class _CutRequest(_Request):
    code: Annotated[int, Field(ge=1000, le=4999)] | None = None


class _RefuseRequest(BaseModel):
    status: Annotated[int, Field(ge=400, le=599)] | None = None


@dataclass(frozen=True, slots=True)
class TestHooks:
    """Routes to one server's `Faults`."""

    # a class of the product, not a test case
    __test__ = False

    faults: Faults
    verify: Verify

    def attach(self, app: web.Application) -> None:
        app.router.add_get(f"{_ROOT}/faults", self.listing)
        app.router.add_post(f"{_ROOT}/faults", self.add)
        app.router.add_delete(f"{_ROOT}/faults", self.clear)
        app.router.add_post(f"{_ROOT}/cut", self.cut)
        app.router.add_post(f"{_ROOT}/black-hole", self.black_hole)
        app.router.add_post(f"{_ROOT}/crash", self.crash)
        app.router.add_post(f"{_ROOT}/refuse", self.refuse)

    def _guard(self, request: web.Request) -> None:
        bearer = request.headers.get("Authorization", "")
        token = bearer[7:] if bearer.lower().startswith("bearer ") else request.headers.get("apikey", "")
        try:
            role = identify(self.verify, token).claims.get("role")
        except Refused as error:
            raise web.HTTPUnauthorized(text=str(error)) from error
        if role != "service_role":
            raise web.HTTPForbidden(text="The test hook needs the service role.")

    async def _body(self, request: web.Request, model: type[Model]) -> Model:
        self._guard(request)
        try:
            return model.model_validate_json(await request.read() or b"{}")
        except ValidationError as error:
            raise web.HTTPUnprocessableEntity(text=error.json(include_url=False)) from error

    async def listing(self, request: web.Request) -> web.Response:
        self._guard(request)
        rules = [_shown(rule) for rule in self.faults.rules()]
        return web.json_response({"rules": rules, "sockets": self.faults.joined()})

    async def add(self, request: web.Request) -> web.Response:
        body = await self._body(request, _RuleRequest)
        rule = self.faults.add(Rule(body.action, body.topic, body.event, body.delay_ms, body.times))
        return web.json_response(_shown(rule), status=201)

    async def clear(self, request: web.Request) -> web.Response:
        self._guard(request)
        self.faults.clear()
        return web.Response(status=204)

    async def cut(self, request: web.Request) -> web.Response:
        body = await self._body(request, _CutRequest)
        return web.json_response({"sockets": self.faults.cut(body.topic, code=body.code)})

    async def black_hole(self, request: web.Request) -> web.Response:
        body = await self._body(request, _Request)
        return web.json_response({"sockets": self.faults.black_hole(body.topic)})

    async def crash(self, request: web.Request) -> web.Response:
        body = await self._body(request, _Request)
        return web.json_response({"channels": self.faults.crash(body.topic)})

    async def refuse(self, request: web.Request) -> web.Response:
        body = await self._body(request, _RefuseRequest)
        self.faults.refuse(body.status)
        return web.Response(status=204)


def _shown(rule: Rule) -> Mapping[str, object]:
    return {
        "id": rule.id, "action": rule.action, "topic": rule.topic, "event": rule.event,
        "delay_ms": rule.delay_ms, "times": rule.times, "hits": rule.hits,
    }  # fmt: skip
