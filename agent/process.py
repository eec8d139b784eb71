"""What this run of the agent says of itself, so that two machines with one identity are noticed.

docs/protocol.md, `vps_heartbeat`, says what the database makes of it.
"""

import hashlib
import socket
import uuid
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine_mark(data_dir: Path) -> str:
    """The same only for runs that contend for the same lock: one boot of one machine, and one data directory.

    Two such runs cannot be alive at once, for the journal in that directory has one owner; of any other two nobody knows.
    """
    try:
        boot = BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        boot = f"{socket.gethostname()}/{uuid.getnode()}/{round(psutil.boot_time())}"
    place = data_dir.stat()
    return hashlib.sha256(f"{boot}/{place.st_dev}/{place.st_ino}".encode()).hexdigest()[:32]


class AgentProcess:
    """One run. `figures` is said once per heartbeat: its number grows, so that a copy of this very process is noticed too."""

    def __init__(self, data_dir: Path) -> None:
        self._id = uuid.uuid4().hex
        self._machine = machine_mark(data_dir)
        self._beat = 0
        self._new = True

    def figures(self) -> dict[str, object]:
        self._beat += 1
        return {"id": self._id, "machine": self._machine, "beat": self._beat, "new": self._new}

    def accepted(self) -> None:
        """The database has taken this run for the one that works."""
        self._new = False
