"""Identifies this run of the agent, so that the database notices two machines with one identity.

docs/protocol.md, `vps_heartbeat`, describes how the database uses it.
"""

import hashlib
import socket
import uuid
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine_mark(data_dir: Path) -> str:
    """A hash of one boot of one machine and one data directory.

    Two runs with the same mark cannot be alive at once, because the journal in that directory has one owner. Two runs
    with different marks can.
    """
    try:
        boot = BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        boot = f"{socket.gethostname()}/{uuid.getnode()}/{round(psutil.boot_time())}"
    place = data_dir.stat()
    return hashlib.sha256(f"{boot}/{place.st_dev}/{place.st_ino}".encode()).hexdigest()[:32]


class AgentProcess:
    """One run of the agent. Call `figures` once per heartbeat: the number in it grows, so that even a copy of the
    running process is noticed."""

    def __init__(self, data_dir: Path) -> None:
        self._id = uuid.uuid4().hex
        self._machine = machine_mark(data_dir)
        self._beat = 0
        self._new = True

    def figures(self) -> dict[str, object]:
        self._beat += 1
        return {"id": self._id, "machine": self._machine, "beat": self._beat, "new": self._new}

    def accepted(self) -> None:
        """The database has accepted this run as the one that works as this VPS."""
        self._new = False
