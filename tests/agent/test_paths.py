"""A path that cannot be written is TC614, whatever it is for, and before anything is started."""

from pathlib import Path

import pytest

from agent.cli import run

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")

STATEMENT = ("demo", "--replay", "example", "--json")
TARGETS = (
    ("demo", "--seconds", "1", "--json", "PATH"),
    (*STATEMENT, "PATH"),
    *(
        (("bench", name, "--json", "PATH"))
        for name in ("copy", "fanout", "burst", "floods", "queue", "history", "tenants")
    ),
    ("up", "--data", "PATH"),
    ("paper", "--data", "PATH"),
)


@pytest.mark.parametrize("arguments", TARGETS, ids=lambda arguments: " ".join(arguments[:2]))
@pytest.mark.parametrize("kind", ["below a file", "no such file system"])
def test_an_unwritable_path_is_one_line(
    arguments: tuple[str, ...], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may write nearly everywhere, so these are paths that nobody can write."""
    (tmp_path / "file").write_text("")
    path = {"below a file": tmp_path / "file" / "x", "no such file system": Path("/proc/nowhere/x")}[kind]
    assert run([str(path) if part == "PATH" else part for part in arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("tradecopier: TC614: ")
    assert "cannot be written" in said
    assert str(path) in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [t for t in TARGETS if "--json" in t], ids=lambda arguments: " ".join(arguments[:2])
)
def test_a_folder_is_no_file(arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(tmp_path) if part == "PATH" else part for part in arguments]) == 1
    assert capsys.readouterr().err.startswith(f"tradecopier: TC614: {tmp_path} cannot be written (Is a directory)")


@pytest.mark.parametrize(
    "arguments", [t for t in TARGETS if "--data" in t], ids=lambda arguments: " ".join(arguments[:2])
)
def test_a_file_is_no_folder(arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert run([str(file) if part == "PATH" else part for part in arguments]) == 1
    assert capsys.readouterr().err.startswith(f"tradecopier: TC614: {file} cannot be written")


def test_a_check_leaves_no_empty_file_behind(tmp_path: Path) -> None:
    from agent.testbed import figures_file

    figures_file.check_writable(tmp_path / "new" / "figures.json")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_disk_that_is_full_at_the_end_is_the_same_error(capsys: pytest.CaptureFixture[str]) -> None:
    from agent.failure import Failure
    from agent.testbed import figures_file

    with pytest.raises(Failure, match="cannot be written") as full:
        figures_file.write(Path("/dev/full"), {"events": 1})
    assert full.value.code == "TC614"


@pytest.mark.parametrize("command", ["enroll", "run"])
def test_an_agents_data_directory(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for name, value in {
        "DATA_DIR": str(tmp_path / "file" / "x"), "URL": "http://127.0.0.1:1", "PUBLISHABLE_KEY": "k", "VPS_ID": "v",
        "AGENT_SECRET": "s",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"TRADECOPIER_{name}", value)
    arguments = {"enroll": ["--url", "http://127.0.0.1:1", "--token", "t"], "run": []}[command]
    assert run(["agent", command, *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("tradecopier: TC614: ")
    assert str(tmp_path / "file" / "x") in said


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    assert run(["demo", "--seconds", "1"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("tradecopier: TC614: the folder for temporary files")


def test_an_error_that_nobody_expected_is_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode() -> None:
        raise PermissionError(13, "Permission denied", "/somewhere/else")

    monkeypatch.setattr("agent.settings.load_settings", explode)
    assert run(["agent", "run"]) == 1
    assert capsys.readouterr().err == (
        "tradecopier: TC614: /somewhere/else cannot be written (Permission denied) → free disk space, give this user"
        " write permission, or choose another path\n"
    )
