"""Files that only their owner can read (mode 0600), whatever the umask and their earlier mode: logs, logins, tokens."""

import os
from pathlib import Path
from typing import IO, Final

PRIVATE: Final = 0o600


def append(path: Path) -> IO[bytes]:
    """Open `path` for appending. If others could read the file, its mode is corrected."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE), "ab")
    path.chmod(PRIVATE)
    return file


def write(path: Path, text: str) -> None:
    """Replace `path` with a new file that holds `text`: atomically, and not readable through a handle opened before."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "w", encoding="utf-8") as out:
        out.write(text)
    new.chmod(PRIVATE)
    new.replace(path)


def tighten(path: Path) -> None:
    """Make the file readable for its owner only. Does nothing if there is no such file."""
    if path.exists():
        path.chmod(PRIVATE)
