"""Enrolment of a machine as a VPS of the farm, and the identity that it stores."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_supabase import Supabase, supabase_server

from agent.command.enrollment import Identity, check_writable, default_name, enroll, enroll_this_machine, store
from agent.failure import Failure

GRANTED = {"vps_id": "v-1", "secret": "the-secret", "publishable_key": "sb_publishable_x"}


@pytest.fixture
async def server() -> AsyncIterator[Supabase]:
    async with supabase_server() as running:
        yield running


async def test_a_token_is_exchanged_for_an_identity(server: Supabase) -> None:
    server.auth[""] = lambda _: (201, GRANTED)
    identity = await enroll(server.url, "one-time", "vps-a", ["paper"])
    assert server.called("") == [{"token": "one-time", "name": "vps-a", "platforms": ["paper"]}]
    assert identity == Identity(server.url, "v-1", "sb_publishable_x", "the-secret")
    assert "the-secret" not in repr(identity)


async def test_a_refused_token_says_why_and_what_to_do(server: Supabase) -> None:
    server.script(
        "",
        (
            400,
            {"code": "TC210", "message": "this enrolment token has expired", "hint": "Ask an operator for a new one."},
        ),
    )
    with pytest.raises(Failure) as failure:
        await enroll(server.url, "old", "vps-a", ["paper"])
    assert str(failure.value).startswith("TC210: ")
    assert "has expired → Ask an operator for a new one." in str(failure.value)


@pytest.mark.parametrize("answer", [(503, "<html>"), (404, "<html>"), (200, {"vps_id": "v"}), (200, "<html>"), "cut"])
async def test_a_project_that_cannot_enrol_is_named(server: Supabase, answer: tuple[int, object] | str) -> None:
    server.script("", answer)
    with pytest.raises(Failure) as failure:
        await enroll(server.url, "token", "vps-a", ["paper"])
    assert server.url in str(failure.value)


async def test_a_project_that_does_not_send_its_key_needs_one_given(server: Supabase) -> None:
    server.auth[""] = lambda _: (201, {**GRANTED, "publishable_key": None})
    with pytest.raises(Failure, match="--key"):
        await enroll(server.url, "token", "vps-a", ["paper"])
    assert (await enroll(server.url, "token", "vps-a", ["paper"], "given")).publishable_key == "given"


@pytest.mark.parametrize(
    "url",
    [
        "http://vps.example.test",
        "http://10.0.0.1:54321",
        "http://example.test#@localhost",
        "http://127.0.0.1.example.test",
        "",
    ],
)
def test_no_token_is_sent_over_plain_http(tmp_path: Path, url: str) -> None:
    with pytest.raises(Failure) as failure:
        enroll_this_machine(url, "one-time", "vps-a", ["paper"], None, tmp_path)
    assert failure.value.code == "TC611", "TC615 would mean that it was tried"
    assert "--url" in str(failure.value)
    assert list(tmp_path.iterdir()) == []


async def test_a_token_does_not_follow_a_redirect(server: Supabase) -> None:
    server.script("", (307, "elsewhere"))
    server.location = f"{server.url}/functions/v1/enroll/elsewhere"
    with pytest.raises(Failure, match="HTTP 307"):
        await enroll(server.url, "one-time", "vps-a", ["paper"])
    assert server.called("/elsewhere") == []


def test_the_identity_is_readable_for_its_owner_only(tmp_path: Path) -> None:
    file = store(Identity("https://x", "v", "k", "s"), tmp_path / "new")
    assert json.loads(file.read_text()) == {
        "url": "https://x",
        "publishable_key": "k",
        "vps_id": "v",
        "agent_secret": "s",
    }
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["agent.json"]


def test_a_machine_is_enrolled_once(tmp_path: Path) -> None:
    store(Identity("https://x", "v", "k", "s"), tmp_path)
    with pytest.raises(Failure, match="enrolled already"):
        check_writable(tmp_path)


def test_a_place_that_cannot_be_written_is_found_before_the_token_is_used_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="cannot be written"):
        check_writable(tmp_path / "file")


def test_the_machines_name_is_one_that_a_vps_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Büro_PC 7.lan")
    assert default_name() == "B-ro_PC-7"
