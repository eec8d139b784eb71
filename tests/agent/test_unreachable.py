"""A certificate that is not trusted is named as the cause, with what to do, as behind a company's proxy."""

import asyncio
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TRADECOPIER = [sys.executable, "-c", "from agent.cli import main; main()"]


def certificate(folder: Path, name: str = "127.0.0.1", *, days: int = 1) -> Path:
    """A self-signed certificate with its key in one file; `days` below 0: it has expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A company's proxy")])
    now = datetime.now(UTC)
    own = x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([own]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}{days}.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


@contextmanager
def project(pem: Path) -> Iterator[str]:
    """Something that answers over TLS with this certificate, and refuses every call. Its address."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    loop, ready, ports = asyncio.new_event_loop(), threading.Event(), list[int]()

    async def serve() -> None:
        async def refuse(_: web.Request) -> web.Response:
            return web.json_response({"message": "not here"}, status=401)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", refuse)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        ports.append(runner.addresses[0][1])
        ready.set()
        await stopped.wait()
        await runner.cleanup()

    stopped = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield f"https://127.0.0.1:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def own(folder: Path) -> Path:
    return certificate(folder)


def run(url: str, data: Path, *arguments: str, **environment: str) -> str:
    """The command's output and error."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRADECOPIER_", "SSL_"))}
    told = {"TRADECOPIER_URL": url, "TRADECOPIER_SECRET_KEY": "sb_secret_x", "TRADECOPIER_DATA_DIR": str(data)}
    done = subprocess.run(
        [*TRADECOPIER, *arguments],
        env=kept | told | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    return done.stdout + done.stderr


COMMANDS = (
    ("operator", "grant", "a@example.org"),
    ("restored",),
    ("agent", "enroll", "--url", "URL", "--token", "t"),
    ("agent", "doctor"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_a_proxys_certificate_is_named_with_the_variable_that_helps(
    own: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    with project(own) as url:
        arguments = [url if part == "URL" else part for part in command]
        said = run(url, tmp_path, *arguments)
        assert "its certificate is signed by an authority that is unknown here, such as a company's proxy" in said
        assert "→ set SSL_CERT_FILE to a file that contains that authority" in said
        said = run(url, tmp_path, *arguments, SSL_CERT_FILE=str(own))
        assert "its certificate" not in said, "with the variable set as the message says, the project answers"
        said = run(url, tmp_path, *arguments, SSL_CERT_FILE=str(tmp_path / "nowhere.pem"))
        assert f"SSL_CERT_FILE names {tmp_path / 'nowhere.pem'}, which is no file" in said


def test_other_faults_of_a_certificate_are_not_blamed_on_a_proxy(folder: Path, tmp_path: Path) -> None:
    for pem, words in (
        (certificate(folder, days=-2), "not valid at this machine's time"),
        (certificate(folder, "elsewhere.example"), "belongs to another name"),
    ):
        with project(pem) as url:
            said = run(url, tmp_path, "operator", "grant", "a@example.org", SSL_CERT_FILE=str(pem))
            assert words in said
            assert "SSL_CERT_FILE" not in said


def test_an_agent_that_waits_for_its_project_logs_the_cause(own: Path, tmp_path: Path) -> None:
    with project(own) as url:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRADECOPIER_", "SSL_"))}
        identity = {"PUBLISHABLE_KEY": "sb_publishable_x", "VPS_ID": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01"}
        told = {"URL": url, "AGENT_SECRET": "x", "DATA_DIR": str(tmp_path), **identity}
        agent = subprocess.Popen(
            [*TRADECOPIER, "agent", "run"],
            env=kept | {f"TRADECOPIER_{name}": value for name, value in told.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert agent.stdout is not None
        try:
            assert any("set SSL_CERT_FILE to a file that contains that authority" in line for line in agent.stdout)
        finally:
            agent.kill()
            agent.communicate()
