"""Runs one child that must not outlive its parent. Standard library only: it is started with `python -I -S`.

    guard.py USER STOP_SIGNAL STOP_SECONDS COMMAND…

The parent holds the other end of standard input. When that closes (the parent ended, however it ended), the child gets
STOP_SIGNAL, and SIGKILL after STOP_SECONDS. On Linux the child also dies when the guard itself is killed. USER is a
user name to drop to, or "-". Exits with the child's status.
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
        # PR_SET_PDEATHSIG (1); it survives exec but is cleared by setuid, so it comes last.
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)


def main() -> int:
    """Run the child and return its exit status."""
    user, stop_signal, stop_seconds, *command = sys.argv[1:]
    # Ctrl-C goes to the whole terminal group; the parent decides when its children stop.
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
    select.select([0, ended], [], [])
    if child.poll() is None:
        _stop(child, int(stop_signal), float(stop_seconds))
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


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
