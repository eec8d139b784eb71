"""Child processes of the stack. Each runs behind agent/stack/orphan_guard.py, so that none outlives a killed parent."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from agent import private_file

# a longer log is renamed at the next start
LARGEST_LOG_BYTES: Final = 5_000_000
# a longer log is truncated while it is being written
LARGEST_RUNNING_LOG_BYTES: Final = 20_000_000
GUARD: Final = Path(__file__).with_name("orphan_guard.py")


class Child:
    """One guarded process. `stop()` is graceful and blocks. If the parent dies, the child is stopped the same way."""

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
        """Start `command` and append its output to `log`.

        `environment` replaces the parent's environment completely.
        """
        self.log = log
        self._stop_seconds = stop_seconds
        log.parent.mkdir(parents=True, exist_ok=True)
        set_aside = log.with_name(f"{log.name}.1")
        if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
            log.replace(set_aside)
        private_file.tighten(set_aside)
        with private_file.append(log) as output:
            self._guard = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(GUARD), user or "-", str(int(stop_signal)), str(stop_seconds)),
                    *(str(log.absolute()), str(LARGEST_RUNNING_LOG_BYTES), *command),
                ],
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
        """Stop the child gracefully and wait until it has ended. Safe to call again."""
        pipe: IO[bytes] | None = self._guard.stdin
        if pipe is not None and not pipe.closed:
            pipe.close()
        try:
            self._guard.wait(self._stop_seconds + 5)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()

    def last_lines(self, count: int = 5) -> str:
        """The last lines of the log, for an error message."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
        except OSError:
            return ""
