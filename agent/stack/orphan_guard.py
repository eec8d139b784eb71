"""Runs one child that must not outlive its parent. Standard library only: it is started with `python -I -S`.

    orphan_guard.py USER STOP_SIGNAL STOP_SECONDS LOG LARGEST_LOG_BYTES COMMAND…

The parent holds the other end of standard input. When that closes (the parent ended, for whatever reason), the child
gets STOP_SIGNAL, and SIGKILL after STOP_SECONDS. On Linux the child also dies when the guard itself is killed. USER is
the user to switch to, or "-". The guard exits with the child's status. LOG is the file that standard output is appended
to. When it exceeds LARGEST_LOG_BYTES, its end is copied to LOG.1 and it is emptied, so that no client can fill the
disk.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time

LOOK_SECONDS = 0.5
KEPT_BYTES = 1_000_000


def _become(user: str) -> None:
    if user != "-":
        import pwd

        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    os.umask(0o077)


def _die_with_guard() -> None:
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG (1) survives exec but is cleared by setuid, so it is set last.
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)


def main() -> int:
    """Run the child and return its exit status."""
    user, stop_signal, stop_seconds, log, largest, *command = sys.argv[1:]
    # Ctrl-C reaches the whole process group; the parent decides when its children stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def prepare() -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _become(user)
        _die_with_guard()

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=prepare)
    ended, wake = os.pipe()

    def watch() -> None:
        child.wait()
        os.close(wake)

    threading.Thread(target=watch, daemon=True).start()
    while not select.select([0, ended], [], [], LOOK_SECONDS)[0]:
        with contextlib.suppress(OSError):
            _bound(log, int(largest))
    if child.poll() is None:
        _stop(child, int(stop_signal), float(stop_seconds))
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _bound(log: str, largest: int) -> None:
    """Truncate the log. Its writers append, so they continue at the start; lines written meanwhile may be lost."""
    size = os.fstat(1).st_size
    if size <= largest:
        return
    with open(log, "rb") as file:
        file.seek(max(0, size - KEPT_BYTES))
        end = file.read(KEPT_BYTES)
    with os.fdopen(os.open(f"{log}.1", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as kept:
        kept.write(end)
    os.ftruncate(1, 0)


def _stop(child: "subprocess.Popen[bytes]", stop_signal: int, stop_seconds: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(stop_signal)
    deadline = time.monotonic() + stop_seconds
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
