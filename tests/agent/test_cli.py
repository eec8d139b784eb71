"""The command line: lazy, readable on error, silent otherwise."""

import subprocess
import sys
from pathlib import Path

import pytest

from agent import cli
from agent.cli import Entry, run
from agent.failure import Failure


@pytest.fixture(autouse=True)
def data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TRADECOPIER_DATA_DIR", str(tmp_path))
    for name in (
        "URL",
        "PUBLISHABLE_KEY",
        "VPS_ID",
        "AGENT_SECRET",
        "SECRET_KEY",
        "AGENT_EMAIL",
        "AGENT_PASSWORD",
        "DEBUG",
    ):
        monkeypatch.delenv(f"TRADECOPIER_{name}", raising=False)
    return tmp_path


def test_help_lists_every_command_without_importing_one() -> None:
    code = (
        "import sys, agent.cli; agent.cli.run(['--help']); "
        "usual = ('agent.cli', 'agent.failure', 'agent.paths'); "
        "print([m for m in sys.modules if m.startswith('agent.') and m not in usual])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in cli.COMMANDS:
        assert name in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_a_command_that_is_not_built_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "soon", Entry("agent.not_there.command:soon", ""))
    assert run(["soon"]) == 1
    assert capsys.readouterr().err.startswith("tradecopier: TC601: `tradecopier soon` is not part of this version")


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(cli.COMMANDS, "broken", Entry("needs_more:broken", ""))
    assert run(["broken"]) == 1
    assert "needs the Python package a_package_that_nobody_has" in capsys.readouterr().err


def test_an_unknown_command_points_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["nope"]) == 2
    assert capsys.readouterr().err == "tradecopier: No such command 'nope'. → see `tradecopier --help`\n"


def test_a_bug_is_one_line_unless_debugged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def explode() -> None:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr("agent.settings.load_settings", explode)
    assert run(["agent", "run"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        run(["--debug", "agent", "run"])


def test_of_several_errors_the_one_a_person_can_act_on_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode() -> None:
        raise BaseExceptionGroup(
            "several", [ValueError("noise"), BaseExceptionGroup("inner", [Failure("disk full", "free some")])]
        )

    monkeypatch.setattr("agent.settings.load_settings", explode)
    assert run(["agent", "run"]) == 1
    assert capsys.readouterr().err == "tradecopier: disk full → free some\n"


def test_an_interrupted_command_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.settings.load_settings", interrupt)
    assert run(["agent", "run"]) == 130


def test_an_agent_without_settings_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["agent", "run"]) == 1
    assert capsys.readouterr().err.count("is missing") == 4


def test_the_doctor_works_before_enrolment_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["agent", "doctor"]) == 1
    out = capsys.readouterr().out
    assert "ok   python" in out
    assert "ok   platform paper" in out
    assert out.count("FAIL settings") == 4


def test_the_doctor_looks_at_the_network_when_the_address_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRADECOPIER_URL", "http://127.0.0.1:1")
    assert run(["agent", "doctor"]) == 1
    assert "FAIL network: http://127.0.0.1:1 does not answer" in capsys.readouterr().out


def test_the_doctor_finds_an_identity_that_others_can_read(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = data_dir / "agent.json"
    file.write_text("{}")
    file.chmod(0o644)
    assert run(["agent", "doctor"]) == 1
    assert f"chmod 600 {file}" in capsys.readouterr().out


def test_an_operator_is_granted_with_the_secret_key_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["operator", "grant", "somebody@example.test"]) == 1
    assert "TRADECOPIER_SECRET_KEY" in capsys.readouterr().err


def test_the_systemd_unit_holds_no_secret_and_restarts(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["agent", "install", "--print", "--user"]) == 0
    unit = capsys.readouterr().out
    assert f"Environment=TRADECOPIER_DATA_DIR={data_dir}" in unit
    assert "Restart=always" in unit
    assert "SECRET" not in unit
