"""The Edge Function `enroll` on the running stack: joining the farm, signing in, and every way of being refused."""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from agent.stack.stack import Stack

Answer = tuple[int, dict[str, Any]]


_numbers = itertools.count(1)


class Caller:
    """Somebody on the network; `token()` is what an operator would hand out."""

    def __init__(self, stack: Stack, http: aiohttp.ClientSession) -> None:
        self.stack = stack
        self.http = http
        self._number = next(_numbers)

    def vps(self, which: str) -> str:
        """A name that no other test gives."""
        return f"vps-{self._number}-{which}"

    async def post(
        self,
        path: str,
        body: object = None,
        *,
        data: bytes | None = None,
        key: str | None = None,
        jwt: str | None = None,
    ) -> Answer:
        headers = {"apikey": key} if key else {}
        if jwt:
            headers["authorization"] = f"Bearer {jwt}"
        sent: dict[str, Any] = {"json": body} if data is None else {"data": data}
        async with self.http.post(f"{self.stack.url}{path}", headers=headers, **sent) as response:
            return response.status, await response.json(content_type=None)

    async def enroll(self, **body: object) -> Answer:
        return await self.post("/functions/v1/enroll", body)

    async def session(self, **body: object) -> Answer:
        return await self.post("/functions/v1/enroll/session", body)

    async def rpc(self, name: str, body: object, *, jwt: str) -> Answer:
        return await self.post(f"/rest/v1/rpc/{name}", body, key=self.stack.publishable_key, jwt=jwt)

    async def token(self) -> str:
        status, made = await self.post(
            "/rest/v1/rpc/create_enrollment_token", {"p_request": {}}, key=self.stack.secret_key
        )
        assert status == 200, made
        token = made["token"]
        assert isinstance(token, str)
        return token

    async def value(self, query: str, *parameters: object) -> Any:
        async with await self.stack.database.connect_async() as connection:
            row = await (await connection.execute(query.encode(), parameters)).fetchone()
        return None if row is None else row[0]

    async def users(self) -> int:
        count = await self.value("select count(*) from auth.users")
        assert isinstance(count, int)
        return count


@pytest.fixture
async def caller(stack: Stack) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http:
        yield Caller(stack, http)


async def test_a_token_becomes_an_agent_that_signs_in_again_and_again(caller: Caller) -> None:
    token = await caller.token()
    status, identity = await caller.enroll(
        token=token, name=caller.vps("a"), platforms=["paper", "mt5"], region="lon", capacity=7
    )
    assert status == 201, identity
    assert identity["name"] == caller.vps("a")
    assert identity["publishable_key"] == caller.stack.publishable_key
    stored = await caller.value("select secret_hash from private.vps_secrets where vps_id = %s", identity["vps_id"])
    assert stored == hashlib.sha256(identity["secret"].encode()).hexdigest()

    session: dict[str, Any] = {}
    for _ in range(2):
        status, session = await caller.session(vps_id=identity["vps_id"], secret=identity["secret"])
        assert status == 200, session
        assert set(session) == {"access_token", "refresh_token", "expires_in"}
        status, beat = await caller.rpc(
            "vps_heartbeat", {"p_heartbeat": {"protocol_version": 2, "accounts": []}}, jwt=session["access_token"]
        )
        assert status == 200, beat
        assert beat["vps_id"] == identity["vps_id"]

    status, refreshed = await caller.post(
        "/auth/v1/token?grant_type=refresh_token",
        {"refresh_token": session["refresh_token"]},
        key=caller.stack.publishable_key,
    )
    assert status == 200, refreshed

    written = "".join(file.read_text(errors="replace") for file in caller.stack.data.rglob("*.log"))
    assert [name for name in (token, identity["secret"], session["access_token"]) if name in written] == []


async def test_a_refused_enrolment_leaves_no_user_behind(caller: Caller) -> None:
    token = await caller.token()
    assert (await caller.enroll(token=token, name=caller.vps("a"), platforms=["paper"]))[0] == 201
    before = await caller.users()

    status, refusal = await caller.enroll(token=token, name=caller.vps("b"), platforms=["paper"])
    assert (status, refusal["code"]) == (403, "TC210")
    assert refusal["hint"]
    status, refusal = await caller.enroll(token="tce_" + "0" * 64, name=caller.vps("b"), platforms=["paper"])
    assert (status, refusal["code"]) == (403, "TC210")
    status, refusal = await caller.enroll(token=await caller.token(), name=caller.vps("a"), platforms=["paper"])
    assert (status, refusal["code"]) == (409, "TC211")
    status, refusal = await caller.enroll(token=await caller.token(), name=caller.vps("b"), platforms=["abacus"])
    assert (status, refusal["code"]) == (400, "TC001")
    assert "abacus" in refusal["message"]
    assert await caller.users() == before


async def test_of_many_machines_with_one_token_exactly_one_joins(caller: Caller) -> None:
    token, before = await caller.token(), await caller.users()
    vpses = await caller.value("select count(*) from public.vps_instances")
    answers = await asyncio.gather(
        *(caller.enroll(token=token, name=caller.vps(str(n)), platforms=["paper"]) for n in range(4))
    )
    assert sorted(status for status, _ in answers) == [201, 403, 403, 403]
    assert await caller.value("select count(*) from public.vps_instances") == vpses + 1
    assert await caller.users() == before + 1  # users made for the losers are gone


async def test_signing_in_needs_the_secret_of_a_vps_that_is_not_retired(caller: Caller) -> None:
    _, identity = await caller.enroll(token=await caller.token(), name=caller.vps("a"), platforms=["paper"])
    _, other = await caller.enroll(token=await caller.token(), name=caller.vps("b"), platforms=["paper"])
    status, refusal = await caller.session(vps_id=identity["vps_id"], secret=other["secret"])
    assert (status, refusal["code"]) == (401, "TC212")

    status, retired = await caller.post(
        "/rest/v1/rpc/retire_vps", {"p_request": {"vps_id": identity["vps_id"]}}, key=caller.stack.secret_key
    )
    assert status == 200, retired
    status, refusal = await caller.session(vps_id=identity["vps_id"], secret=identity["secret"])
    assert (status, refusal["code"]) == (401, "TC212")  # its secret is gone with it


async def test_what_is_malformed_is_named_but_never_repeated(caller: Caller) -> None:
    secret = "very-secret-very-secret"
    for body, field in (
        ({}, "token"),
        ({"token": secret, "platforms": []}, "platforms"),
        ({"token": secret, "platforms": "paper"}, "platforms"),
        ({"token": secret, "platforms": ["paper"], "capacity": 0}, "capacity"),
        ({"token": secret, "platforms": ["paper"], "surprise": secret}, "surprise"),
        ([secret], "payload"),
    ):
        status, refusal = await caller.post("/functions/v1/enroll", body)
        assert (status, refusal["code"]) == (400, "TC001"), refusal
        assert field in refusal["message"]
        assert secret not in str(refusal)
    status, refusal = await caller.session(vps_id="1", secret=secret)
    assert (status, refusal["code"]) == (400, "TC001")
    assert "vps_id" in refusal["message"]

    status, refusal = await caller.post("/functions/v1/enroll", data=b"{" + secret.encode())
    assert (status, refusal["code"]) == (400, "TC001")
    status, refusal = await caller.post("/functions/v1/enroll", data=b"[" + b"1," * 20_000)
    assert (status, refusal["code"]) == (413, "TC002")
    status, refusal = await caller.post("/functions/v1/enroll/elsewhere", {})
    assert (status, refusal["code"]) == (404, "TC001")


async def test_an_outage_is_told_as_one_and_costs_nothing(caller: Caller) -> None:
    token = await caller.token()
    async with await caller.stack.database.connect_async() as connection:
        await connection.execute("alter function public.enroll_vps(jsonb) rename to enroll_vps_away")
        await connection.execute("notify pgrst, 'reload schema'")
    before = await caller.users()
    status, refusal = await caller.enroll(token=token, name=caller.vps("a"), platforms=["paper"])
    assert (status, refusal["code"]) == (503, "TC141")
    assert await caller.users() == before

    async with await caller.stack.database.connect_async() as connection:
        await connection.execute("alter function public.enroll_vps_away(jsonb) rename to enroll_vps")
        await connection.execute("notify pgrst, 'reload schema'")
    assert (await caller.enroll(token=token, name=caller.vps("a"), platforms=["paper"]))[0] == 201
