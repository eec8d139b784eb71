"""`make setup` where something is missing: the last line says what, and the command that fixes it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no make on Windows")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What set-up looks at before it installs anything, in a folder whose name has a space."""
    folder = tmp_path / "a checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in ("Makefile", "scripts/setup.py", "pyproject.toml", "package.json", "package-lock.json", ".npmrc"):
        shutil.copy(ROOT / name, folder / name)
    for lock in ROOT.glob("*.lock"):
        shutil.copy(lock, folder)
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The only folder of programs of a machine that has next to nothing."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "make", "env"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    return programs


def program(machine: Path, name: str, script: str) -> None:
    file = machine / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def last_line_of_setup(checkout: Path, machine: Path) -> str:
    environment = {"PATH": str(machine), "HOME": str(checkout), "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["make", "setup"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    return (done.stdout + done.stderr).decode().splitlines()[-1]


def test_without_python_the_last_line_names_it(checkout: Path, machine: Path) -> None:
    line = last_line_of_setup(checkout, machine)
    assert "Python was not found" in line
    assert "apt-get install -y python3 python3-venv" in line


def test_with_an_old_python_only_the_last_line_says_so(checkout: Path, machine: Path) -> None:
    # the real interpreter, told that it is old before set-up looks
    pretend = "import sys, runpy; sys.version_info = (3, 9, 2); sys.argv = sys.argv[1:]"
    pretend += "; runpy.run_path(sys.argv[0], run_name='__main__')"
    program(
        machine, "python3", f'[ "$1" = -c ] && echo "[3, 9]" && exit 0\nexec "{sys.executable}" -c "{pretend}" "$@"'
    )
    line = last_line_of_setup(checkout, machine)
    assert "Python 3.11 or newer was not found (only 3.9)" in line
    assert "To fix it: " in line


def test_without_node_the_last_line_names_it(checkout: Path, machine: Path) -> None:
    program(machine, "python3", f'exec "{sys.executable}" "$@"')
    line = last_line_of_setup(checkout, machine)
    assert "Node was not found" in line
    assert "install Node 20 or newer" in line


def test_with_an_old_node_the_last_line_says_which(checkout: Path, machine: Path) -> None:
    program(machine, "python3", f'exec "{sys.executable}" "$@"')
    program(machine, "node", "echo v18.19.0")
    assert "Node v18.19.0 is too old" in last_line_of_setup(checkout, machine)


def test_without_npm_the_last_line_names_it(checkout: Path, machine: Path) -> None:
    program(machine, "python3", f'exec "{sys.executable}" "$@"')
    program(machine, "node", "echo v20.0.0")
    assert "npm was not found" in last_line_of_setup(checkout, machine)


@pytest.fixture(scope="module")
def setup_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tradecopier_setup", ROOT / "scripts" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("npm error code ENOSPC", "The disk is full"),
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("The virtual environment was not created successfully because ensurepip is not available.", "python3-venv"),
        ("npm error code ENOTFOUND", "cannot be reached"),
        ("error sending request for url: dns error", "cannot be reached"),
        ("error sending request for url: client error: invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
        ("npm error code SELF_SIGNED_CERT_IN_CHAIN", "is not trusted here"),
        ("Error: unable to get local issuer certificate", "SSL_CERT_FILE"),
        ("unable to verify the first certificate", "SSL_CERT_FILE"),
        ("Certificate verification failed: The certificate is NOT trusted.", "SSL_CERT_FILE"),
        ("Retrying: SSLError(SSLCertVerificationError(1, 'certificate verify failed')); getaddrinfo", "SSL_CERT_FILE"),
        ("Tunnel connection failed: 407 Proxy Authentication Required", "refuses access"),
        ("npm error code E403", "refuses access"),
        ("ERROR: HTTP error 401 Client Error: Unauthorized for url", "refuses access"),
        ("ERROR: No matching distribution found for uv==0.13.9", "lacks a package"),
        ("[Errno -2] Name or service not known ERROR: No matching distribution found for uv", "cannot be reached"),
        ("npm error code EINTEGRITY", "does not match the lock file"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n  hash mismatch", "does not match the lock file"),
        ("PermissionError: [Errno 13] Permission denied: '.venv'", "cannot be written by user"),
        ("something nobody has seen", "This command failed"),
    ],
)
def test_a_failed_command_is_explained(setup_module: ModuleType, output: str, told: str) -> None:
    line = str(setup_module.explain(output, ["npm", "ci"]))
    assert told in line
    assert "To fix it: " in line


def test_every_program_of_set_up_trusts_what_the_system_trusts(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "DENO_TLS_CA_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NODE_USE_SYSTEM_CA", "0")
    show = [sys.executable, "-c", "import os, json; print(json.dumps(dict(os.environ)))"]
    told = json.loads(setup_module.run(show, setup_module.Step()))
    assert (told["UV_NATIVE_TLS"], told["UV_SYSTEM_CERTS"], told["DENO_TLS_CA_STORE"]) == ("1", "1", "system")
    assert told["NODE_USE_SYSTEM_CA"] == "0", "what the user has set stays"
    monkeypatch.setenv("UV_NATIVE_TLS", "false")
    told = json.loads(setup_module.run(show, setup_module.Step()))
    assert (told["UV_NATIVE_TLS"], told.get("UV_SYSTEM_CERTS")) == ("false", None), "two names of one setting"


def test_one_variable_names_the_authorities_for_every_program_of_set_up(
    setup_module: ModuleType, tmp_path: Path
) -> None:
    """pip reads PIP_CERT, or REQUESTS_CA_BUNDLE, and Node NODE_EXTRA_CA_CERTS: neither reads SSL_CERT_FILE."""
    file = tmp_path / "company.pem"
    file.write_text("")
    names = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
    told = setup_module.with_system_certificates({"SSL_CERT_FILE": str(file)})
    assert [told[name] for name in names] == [str(file)] * 3
    told = setup_module.with_system_certificates({"SSL_CERT_FILE": str(file), "PIP_CERT": "own"})
    assert told["PIP_CERT"] == "own", "what the user has set stays"
    told = setup_module.with_system_certificates({"SSL_CERT_FILE": str(tmp_path / "nowhere.pem")})
    assert str(tmp_path / "nowhere.pem") not in [told.get(name) for name in names]


def test_a_step_is_stale_when_content_changes_not_when_dates_do(setup_module: ModuleType) -> None:
    lock = ROOT / "package-lock.json"
    first = setup_module.fingerprint([lock])
    assert first == setup_module.fingerprint([lock])
    assert first != setup_module.fingerprint([ROOT / "package.json"])
    assert first != setup_module.fingerprint([lock], os.uname().sysname)


def test_a_file_of_authorities_that_does_not_exist_is_named(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "company.pem"))
    line = str(setup_module.explain("invalid peer certificate: UnknownIssuer", ["uv"]))
    assert f"SSL_CERT_FILE names {tmp_path / 'company.pem'}, which is no file." in line


def test_set_up_stops_at_the_first_fault(setup_module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """The other steps' commands, and what these have started, are ended; only the first fault is reported."""
    began = setup_module.threading.Event()

    class Slow(setup_module.Step):  # type: ignore[misc, name-defined]
        title = "slow"

        def make(self) -> None:
            began.set()
            setup_module.run(["sh", "-c", "sleep 600 & sleep 600"], self)

    class Broken(setup_module.Step):  # type: ignore[misc, name-defined]
        title = "broken"

        def make(self) -> None:
            assert began.wait(30)
            setup_module.run(["sh", "-c", "echo npm error code ENOSPC; exit 1"], self)

    slow, broken = Slow(), Broken()
    step, missing = setup_module.make_all([slow, broken])
    assert step is broken
    assert "The disk is full" in str(missing)
    shown = capsys.readouterr().out
    assert "✗ broken" in shown
    assert "✗ slow" not in shown


def test_a_package_manager_is_not_ended_by_the_fault_of_another_step(setup_module: ModuleType, tmp_path: Path) -> None:
    done, began = tmp_path / "done", tmp_path / "began"

    class Installing(setup_module.Step):  # type: ignore[misc, name-defined]
        title, interruptible = "installing", False

        def make(self) -> None:
            wait = f"touch '{began}'; while [ ! -e '{tmp_path}/failed' ]; do sleep 0.05; done; touch '{done}'"
            setup_module.run(["sh", "-c", wait], self)

    class Broken(setup_module.Step):  # type: ignore[misc, name-defined]
        title = "broken"

        def make(self) -> None:
            setup_module.run(["sh", "-c", f"while [ ! -e '{began}' ]; do sleep 0.05; done; exit 1"], self)

    broken, said = Broken(), setup_module.Progress.say

    def say(progress: object, line: str) -> None:
        if "✗" in line:
            (tmp_path / "failed").touch()
        said(progress, line)

    setup_module.Progress.say = say
    try:
        step, _ = setup_module.make_all([Installing(), broken])
    finally:
        setup_module.Progress.say = said
    assert step is broken
    assert done.exists()
