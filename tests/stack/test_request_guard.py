"""Every request to the gateway needs the Host of this machine and an unambiguous path; servers behind it obey only
it."""

import asyncio
import itertools
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer
from agent.stack.request_guard import forwarded_target, is_loopback_host, path_fault

if TYPE_CHECKING:
    from agent.stack.stack import Stack

SETUP = """
create function public.probe_headers(p_any jsonb default null) returns json language sql stable
  as $$ select current_setting('request.headers')::json $$;
grant execute on function public.probe_headers(jsonb) to anon, authenticated, service_role;
create table public.probe_odd (id integer primary key, name text, data jsonb);
insert into public.probe_odd values (1, 'a"b&c=d<e>é☃%', '{"x": "1"}'), (2, 'plain', '{"x": "2"}');
alter table public.probe_odd enable row level security;
create policy everybody on public.probe_odd for select using (true);
grant select on public.probe_odd to anon;
"""


@pytest.fixture(scope="module")
def stack(
    postgres_server: PostgresServer, template_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["Stack"]:
    """One stack for all tests here: none of them changes it."""
    from agent.stack.stack import Stack

    copy = Database.create(postgres_server, "test_request_guard", template_database)
    with copy.connect("postgres") as connection:
        connection.execute(SETUP.encode())
    running = Stack(tmp_path_factory.mktemp("guard") / "stack", database=copy)
    try:
        asyncio.run(running.start())
        yield running
    finally:
        asyncio.run(running.close())
        copy.drop()


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


def ask(port: int, target: bytes, *lines: bytes, host: bytes | None = b"127.0.0.1", method: bytes = b"GET") -> Answer:
    """One request exactly as written: a client library would normalise its path."""
    head = [
        method + b" " + target + b" HTTP/1.1",
        *([] if host is None else [b"Host: " + host]),
        b"Connection: close",
        *lines,
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        wire.sendall(b"\r\n".join(head) + b"\r\n\r\n")
        raw = b""
        while more := wire.recv(65536):
            raw += more
            if b"\r\n\r\n" in raw and raw.startswith(b"HTTP/1.1 101"):
                break
    top, _, body = raw.partition(b"\r\n\r\n")
    status, *fields = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    return Answer(int(status.split()[1]), headers, body)


def port_of(stack: "Stack") -> int:
    return int(stack.url.rpartition(":")[2])


DETOURS = [
    b"/..", b"/.", b"/./", b"/../", b"/../..", b"/%2e%2e", b"/%2E%2e/", b"/.%2e", b"/%2e.", b"/%2e", b"/%2e/",
    b"/%252e%252e/",
    b"/%252E%252e", b"/.%252e", b"/%25252e%25252e", b"//", b"//x", b"/x//y", b"/%2f", b"/%2F..%2f", b"/x%2fy",
    b"/x%252fy",
    b"/x%25252Fy", b"/..%2f", b"/..%5c", b"\\", b"/..\\..\\", b"/x\\y", b"/%5c", b"/%5C..", b"/x%255cy", b"/%00",
    b"/x%00",
    b"/x%2500y", b"/x%0d%0a", b"/x%09", b"/x%7f", b"/%c0%ae%c0%ae", b"/%ff", b"/x%", b"/x%2", b"/%u002e%u002e", b"/%zz",
    b"/%252525252e",
]  # fmt: skip
PLACES = [
    b"/rest/v1",
    b"/rest/v1/rpc",
    b"/auth/v1",
    b"/functions/v1",
    b"/functions/v1/enroll",
    b"/realtime/v1",
    b"",
    b"/_next",
]


def test_no_detour_gets_past_the_gateway(stack: "Stack") -> None:
    port, key = port_of(stack), b"apikey: " + stack.publishable_key.encode()
    answers = {}
    for place, detour in itertools.product(PLACES, DETOURS):
        target = place + detour
        for tail in (b"", b"/_system/info"):
            answer = ask(port, target + tail, key)
            # A target that does not begin with / is refused by the HTTP parser with its own message.
            answers[target + tail] = answer.status, answer.code if target.startswith(b"/") else "TC633"
    assert {target: seen for target, seen in answers.items() if seen != (400, "TC633")} == {}


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND"])
def test_no_method_gets_past_the_gateway(stack: "Stack", method: bytes) -> None:
    key, preflight = b"apikey: " + stack.secret_key.encode(), b"Access-Control-Request-Method: GET"
    for target in (b"/rest/v1/../../_system/info", b"/auth/v1/%2e%2e/%2e%2e/_system/info", b"/rest/v1/%252e%252e/x"):
        assert ask(port_of(stack), target, key, preflight, b"Origin: http://x", method=method).status == 400


@pytest.mark.parametrize(
    "target",
    [b"*", b"http://127.0.0.1/rest/v1/copiers", b"http://evil.example/rest/v1/copiers", b"/rest/v1/copiers#x", b"rest"],
)
def test_a_target_that_is_no_path_is_refused(stack: "Stack", target: bytes) -> None:
    answer = ask(port_of(stack), target, b"apikey: " + stack.secret_key.encode(), method=b"OPTIONS")
    assert answer.status == 400


@pytest.mark.parametrize(
    "target", ["/rest/v1x/copiers", "/auth/v1x/health", "/rest/v10/copiers", "/_system/info", "/_studio",
               "/storage/v2/bucket",
               "/Rest/v1/copiers", "/rest/V1/copiers", "/rest", "/auth", "/admin", "/ready", "/reload"],
)  # fmt: skip
def test_only_the_named_prefixes_are_forwarded(stack: "Stack", target: str) -> None:
    answer = ask(port_of(stack), target.encode(), b"apikey: " + stack.secret_key.encode())
    assert answer.status == 404
    assert b"postgres" not in answer.body


def test_a_harmless_spelling_names_the_same_thing(stack: "Stack") -> None:
    key = b"apikey: " + stack.publishable_key.encode()
    for target in (b"/rest/v1/probe_odd", b"/%72est/v1/probe_odd", b"/rest/v1/probe%5Fodd"):
        assert ask(port_of(stack), target + b"?select=id", key).status == 200, target


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        (b"name=eq.a%22b%26c%3Dd%3Ce%3E%C3%A9%E2%98%83%25", [1]),
        (b'name=eq.a"b%26c%3Dd<e>%C3%A9%E2%98%83%25', [1]),  # with what a careless client leaves as it is
        (b"data->>x=eq.2", [2]),
        (b"data-%3E%3Ex=eq.1", [1]),
        (b"name=in.(plain,\"x//../%2e%2e/%5c\")", [2]),
        (b"name=eq.../..//%2e%2e%2f%5c\\", []),
        (b"or=(id.eq.1,and(id.eq.2,name.eq.plain))", [1, 2]),
        (b"name=like.pl%2An&apikey=x", [2]),
    ],
)  # fmt: skip
def test_a_query_arrives_unharmed(stack: "Stack", query: bytes, ids: list[int]) -> None:
    answer = ask(
        port_of(stack), b"/rest/v1/probe_odd?select=id&order=id&" + query, b"apikey: " + stack.publishable_key.encode()
    )
    assert (
        answer.status,
        answer.body and [row["id"] for row in httpx.Response(200, content=_body(answer)).json()],
    ) == (200, ids)


def test_a_query_that_grows_too_long_is_refused_by_its_name(stack: "Stack") -> None:
    """A careless client's quotes become %22 each."""
    key = b"apikey: " + stack.publishable_key.encode()
    for grown in (b'"', b"<", b"|"):
        answer = ask(port_of(stack), b"/auth/v1/verify?token=" + grown * 4000, key)
        assert (answer.status, answer.code) == (414, "TC642")


def test_a_long_query_is_answered_however_long_its_echo_is(stack: "Stack") -> None:
    """REST repeats the query in Content-Location, where each bracket and comma takes three bytes."""
    key = b"apikey: " + stack.publishable_key.encode()
    answer = ask(port_of(stack), b"/rest/v1/probe_odd?select=id&id=in.(" + b"1," * 3500 + b"2)&order=id", key)
    assert (answer.status, json.loads(_body(answer))) == (200, [{"id": 1}, {"id": 2}])
    assert max(map(len, answer.headers.values())) <= 8190


def _body(answer: Answer) -> bytes:
    """Without the chunks' lengths."""
    if answer.headers.get("transfer-encoding") != "chunked":
        return answer.body
    rest, out = answer.body, b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        out += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return out


OURS = [b"127.0.0.1", b"127.0.0.1:54321", b"127.255.1.2:1", b"localhost", b"LocalHost:80", b"localhost.",
        b"app.localhost:3000",
        b"[::1]", b"[::1]:8000", b"[0:0:0:0:0:0:0:1]", b"[::ffff:127.0.0.1]", b"127.0.0.1."]  # fmt: skip
FOREIGN = [
    b"evil.example", b"evil.example:54321", b"127.0.0.1.evil.example", b"localhost.evil.example", b"evil-localhost",
    b"xlocalhost", b"", b" ", b".localhost", b"a..localhost", b"127.0.0.1@evil.example", b"evil.example@127.0.0.1",
    b"127.0.0.1:x",
    b"0.0.0.0", b"10.0.0.1", b"192.168.1.2", b"169.254.169.254", b"[::]", b"[::2]", b"::1", b"[::1", b"[127.0.0.1]",
    b"2130706433", b"0x7f000001", b"127.1", b"0177.0.0.1", b"127.0.0.1, evil.example", b"127.0.0.1 evil.example",
    b"localhost/x", b"localhost#",
    b"127.0.0.1:99999", b"[::ffff:10.0.0.1]", b"\xff", b"%6cocalhost", b"1.0.0.127",
]  # fmt: skip
EVERYWHERE = [b"/", b"/health", b"/config.json", b"/rest/v1/probe_odd", b"/rest/v1/rpc/probe_headers",
              b"/auth/v1/health",
              b"/auth/v1/admin/users", b"/functions/v1/enroll", b"/realtime/v1/websocket", b"/nowhere",
              b"/../x"]  # fmt: skip


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_host_is_refused_everywhere(stack: "Stack", host: bytes) -> None:
    key = b"apikey: " + stack.secret_key.encode()
    for target in EVERYWHERE:
        answer = ask(port_of(stack), target, key, host=host)
        assert (answer.status, answer.code) == (421, "TC634"), target


@pytest.mark.parametrize("host", OURS)
def test_a_loopback_host_is_served(stack: "Stack", host: bytes) -> None:
    assert ask(port_of(stack), b"/health", host=host).status == 200


def test_a_missing_or_second_host_is_refused(stack: "Stack") -> None:
    port = port_of(stack)
    assert ask(port, b"/config.json", host=None).status in (400, 421)
    assert ask(port, b"/config.json", b"Host: evil.example").status in (400, 421)
    assert ask(port, b"/config.json", b"Host: 127.0.0.1").status in (400, 421)


def test_a_socket_of_a_foreign_page_is_not_opened(stack: "Stack") -> None:
    lines = (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13",
             b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")  # fmt: skip
    target = b"/realtime/v1/websocket?vsn=1.0.0&apikey=" + stack.publishable_key.encode()
    assert upgrade(port_of(stack), target, b"evil.example", lines) == 421
    assert upgrade(port_of(stack), target, b"localhost:1", lines) == 101


def upgrade(port: int, target: bytes, host: bytes, lines: tuple[bytes, ...]) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        wire.sendall(b"\r\n".join([b"GET " + target + b" HTTP/1.1", b"Host: " + host, *lines]) + b"\r\n\r\n")
        return int(wire.recv(65536).split()[1])


def inner_ports(stack: "Stack") -> list[int]:
    """The loopback ports behind the gateway: those of its Deno children."""
    assert stack.gateway_pid is not None
    family = psutil.Process(stack.gateway_pid).children(recursive=True)
    ports = {
        c.laddr.port for process in family for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN
    }
    return sorted(ports - {port_of(stack)})


def test_the_servers_behind_answer_nobody_but_the_gateway(stack: "Stack") -> None:
    httpx.get(f"{stack.url}/functions/v1/enroll", timeout=30)  # starts the second one
    ports = inner_ports(stack)
    assert len(ports) == 2
    keys = (b"apikey: " + stack.secret_key.encode(), b"Authorization: Bearer " + stack.keys.service_role_jwt.encode())
    statuses = {
        b"/rest/v1/probe_odd": 401, b"/auth/v1/health": 401, b"/enroll": 401, b"/ready": 404, b"/reload": 404,
        b"/_system/info": 404, b"/rest/v1/../../_system/info": 404, b"/auth/v1x": 404, b"/rest/v1x": 404, b"/": 404,
        b"/storage/v1/bucket": 404,
        b"/toString": 404, b"/__proto__": 404, b"//_system/info": 404,
    }  # fmt: skip
    for port, target in itertools.product(ports, statuses):
        for guess in (b"x-a: b", b"x-tradecopier-gateway: ", b"x-tradecopier-gateway: " + b"0" * 64):
            answer = ask(port, target, guess, *keys)
            assert answer.status in {statuses[target], 404, 400}, (port, target)
            assert b"postgresql" not in answer.body


def test_the_secret_of_the_servers_behind_is_told_to_nobody(stack: "Stack") -> None:
    headers = {"apikey": stack.publishable_key, "X-Tradecopier-Gateway": "mine", "x-other": "seen"}
    for more in ({}, {"Prefer": "count=exact"}):  # by the fast path, and by the server behind
        answer = httpx.post(f"{stack.url}/rest/v1/rpc/probe_headers", json={}, headers=headers | more, timeout=20)
        assert answer.status_code == 200
        said = answer.json()
        assert said["x-other"] == "seen"
        assert "x-tradecopier-gateway" not in said


@pytest.mark.parametrize(
    "header",
    [
        b"Authorization: Bearer \xff\xfe",
        b"Authorization: Bearer a.\xe9.c",
        b"apikey: \xff",
        b"Authorization: Bearer \xc3\xa9",
    ],
)
@pytest.mark.parametrize(
    "target", [b"/rest/v1/probe_odd", b"/rest/v1/rpc/probe_headers", b"/auth/v1/user", b"/auth/v1/admin/users",
               b"/realtime/v1/api/broadcast", b"/realtime/v1/websocket"],
)  # fmt: skip
def test_a_token_that_is_not_utf8_is_refused(stack: "Stack", target: bytes, header: bytes) -> None:
    lines = [header] if header.startswith(b"apikey") else [b"apikey: " + stack.publishable_key.encode(), header]
    if target.endswith(b"websocket"):
        lines = [header.replace(b"apikey", b"x-api-key").replace(b"Authorization: Bearer", b"x-api-key:")[:40]]
    method = b"POST" if b"rpc" in target or b"broadcast" in target else b"GET"
    assert ask(port_of(stack), target, *lines, method=method).status == 401


@pytest.mark.parametrize("target", [b"/rest/v1/probe_odd?select=id", b"/rest/v1/rpc/probe_headers", b"/auth/v1/health"])
def test_another_header_that_is_not_utf8_harms_nothing(stack: "Stack", target: bytes) -> None:
    lines = (
        b"apikey: " + stack.publishable_key.encode(),
        b"x-odd: \xff\xe9",
        b"User-Agent: \xfe",
        b"Content-Type: \xff/json",
    )
    assert ask(port_of(stack), target, *lines).status in (200, 415)


def test_a_query_that_is_not_utf8_is_no_fault_of_the_server(stack: "Stack") -> None:
    key = b"apikey: " + stack.publishable_key.encode()
    for query in (b"p_any=%ff", b"p_any=\xff", b"p_any=%00", b"\xff=1", b"%ff=1", b"p_any=%ED%A0%80"):
        assert ask(port_of(stack), b"/rest/v1/rpc/probe_headers?" + query, key).status < 500, query
        assert ask(port_of(stack), b"/rest/v1/probe_odd?" + query, key).status < 500, query


def test_what_is_judged_is_what_is_sent() -> None:
    """No byte of a path that passes can become another segment, however the next server decodes it."""
    pieces = ["a", ".", "..", "%2e", "%25", "%2f", "/", "\\", "%5c", "%00", "é", "%C3%A9", "~", ";", "%20"]
    for parts in itertools.product(pieces, repeat=3):
        target = "/x/" + "".join(parts)
        if path_fault(target) is None:
            sent = forwarded_target(target)
            assert path_fault(sent) is None
            assert sent.count("/") == target.count("/")
            assert httpx.URL("http://h" + sent).raw_path.decode() == sent


def test_hosts_are_judged_alone() -> None:
    assert all(is_loopback_host([host.decode()]) for host in OURS)
    assert not any(is_loopback_host([host.decode("latin-1")]) for host in FOREIGN)
    assert not is_loopback_host([])
    assert not is_loopback_host(["localhost", "localhost"])
