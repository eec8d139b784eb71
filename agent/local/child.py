"""Child processes of the stack: each behind a guard (agent/local/guard.py), so that none outlives a killed parent."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

LARGEST_LOG_BYTES: Final = 5_000_000  # a longer one is set aside at the next start
GUARD: Final = Path(__file__).with_name("guard.py")


class Child:
    """One guarded process. `stop()` is graceful and blocks; a parent that dies has the same effect."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        directory: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_seconds: float = 5.0,
    ) -> None:
        """Start `command`; its output is appended to `log`. `environment` replaces the parent's altogether."""
        self.log = log
        self._stop_seconds = stop_seconds
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), user or "-", str(int(stop_signal)), str(stop_seconds), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=None if environment is None else dict(environment),
                cwd=directory,
            )

    @property
    def pid(self) -> int:
        """Process id of the guard; the child is its only child process."""
        return self._guard.pid

    @property
    def running(self) -> bool:
        """False once the child has ended."""
        return self._guard.poll() is None

    @property
    def exit_status(self) -> int | None:
        """Exit status of the child, None while it runs."""
        return self._guard.poll()

    def stop(self) -> None:
        """Ask the child to end, wait until it has. Safe to call again."""
        pipe: IO[bytes] | None = self._guard.stdin
        if pipe is not None and not pipe.closed:
            pipe.close()
        try:
            self._guard.wait(self._stop_seconds + 5)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()

    def last_lines(self, count: int = 5) -> str:
        """The end of the log, for an error message."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
        except OSError:
            return ""
