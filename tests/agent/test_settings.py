"""Settings: all errors are reported together, and no secret is ever shown."""

import json
import os
from pathlib import Path

import pytest

from agent.failure import Failure
from agent.settings import PREFIX, default_data_dir, load_settings


@pytest.fixture(autouse=True)
def data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRADECOPIER_DATA_DIR", str(tmp_path))
    return tmp_path


IDENTITY = {
    "url": "https://abc.supabase.co",
    "publishable_key": "sb_publishable_x",
    "vps_id": "v",
    "agent_secret": "s3cret",
}


def write(data_dir: Path, content: object) -> None:
    (data_dir / "agent.json").write_text(json.dumps(content))


def test_every_missing_key_is_reported_at_once_with_how_to_get_it() -> None:
    with pytest.raises(Failure) as failure:
        load_settings()
    text = str(failure.value)
    for key in ("URL", "PUBLISHABLE_KEY", "VPS_ID", "AGENT_SECRET"):
        assert f"TRADECOPIER_{key} is missing" in text
    assert "tradecopier agent enroll" in text
    assert failure.value.code == "TC611"


def test_missing_and_wrong_keys_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADECOPIER_URL", "http://example.com/rest")
    monkeypatch.setenv("TRADECOPIER_LOG_LEVEL", "LOUD")
    monkeypatch.setenv("TRADECOPIER_AGENT_EMAIL", "a@example.test")
    with pytest.raises(Failure) as failure:
        load_settings()
    text = str(failure.value)
    for part in ("URL is wrong", "PUBLISHABLE_KEY is missing", "LOG_LEVEL is wrong", "AGENT_PASSWORD is missing"):
        assert part in text
    assert "VPS_ID" not in text


@pytest.mark.parametrize("url", [
    "abc.supabase.co", "ftp://x", "https://x/rest/v1", "https://", "http://example.com", "http://example.com:54321",
    "http://localhost.example.com", "http://127.0.0.1.example.com", "http://example.com#@localhost", "http://example.com?@127.0.0.1",
    "http://example.com\\@localhost", "http://user@localhost", "http://2130706433", "http://10.0.0.1", "http://[2001:db8::1]:8000",
    "http://0.0.0.0", "https://user:secret@abc.supabase.co", "https://abc.supabase.co?x", "https://abc .supabase.co", "https://x:y",
])  # fmt: skip
def test_an_invalid_address_is_refused(monkeypatch: pytest.MonkeyPatch, data_dir: Path, url: str) -> None:
    write(data_dir, {**IDENTITY, "url": url})
    with pytest.raises(Failure, match="URL is wrong"):
        load_settings()


@pytest.mark.parametrize("url", [
    "http://127.0.0.1:54321", "http://localhost:54321/", "https://abc.supabase.co/",
    "http://[::1]", "http://[::1]:54321", "http://127.0.0.2",
])  # fmt: skip
def test_https_or_loopback_is_an_address(monkeypatch: pytest.MonkeyPatch, data_dir: Path, url: str) -> None:
    write(data_dir, {**IDENTITY, "url": url})
    assert load_settings().url == url.rstrip("/")


def test_the_file_of_the_enrolment_is_enough(data_dir: Path) -> None:
    write(data_dir, IDENTITY)
    settings = load_settings()
    assert settings.vps_id == "v"
    assert settings.rest_url == "https://abc.supabase.co/rest/v1"
    assert settings.journal_file.parent == data_dir


def test_the_environment_outranks_the_file(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    write(data_dir, IDENTITY)
    monkeypatch.setenv("TRADECOPIER_VPS_ID", "other")
    assert load_settings().vps_id == "other"


def test_an_agent_may_have_a_password_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "URL": "http://127.0.0.1:1",
        "PUBLISHABLE_KEY": "k",
        "AGENT_EMAIL": "a@b",
        "AGENT_PASSWORD": "p",
    }.items():
        monkeypatch.setenv(PREFIX + name, value)
    assert load_settings().vps_id is None


def test_a_damaged_file_is_named(data_dir: Path) -> None:
    (data_dir / "agent.json").write_text('{"url": ')
    with pytest.raises(Failure) as failure:
        load_settings()
    assert failure.value.code == "TC610"
    assert str(data_dir / "agent.json") in str(failure.value)


def test_no_secret_is_shown_by_settings_or_their_errors(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    write(data_dir, {**IDENTITY, "drain_seconds": "s3cret"})
    with pytest.raises(Failure) as failure:
        load_settings()
    write(data_dir, IDENTITY)
    shown = f"{failure.value} {load_settings()!r} {load_settings()}"
    assert "s3cret" not in shown
    assert "sb_publishable_x" not in shown


def test_the_data_directory_follows_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRADECOPIER_DATA_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setattr("sys.platform", "linux")
    assert default_data_dir() == tmp_path / "share" / "tradecopier"
