"""One stack per data folder: a lock that the kernel releases when its holder ends, whatever the cause."""

import contextlib
import os
import sys
from pathlib import Path

from agent.failure import Failure


class FolderLock:
    """Held from `take` until `release` or until the process ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None

    def take(self) -> None:
        """Create the folder and lock it. Raises Failure when another stack holds the lock. Safe to call again."""
        if self._file is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(file)
        except OSError as error:
            os.close(file)
            raise Failure(
                f"another stack is using the data folder {self._folder}",
                "stop it, or choose another folder with --data",
                code="TC626",
            ) from error
        self._file = file

    def release(self) -> None:
        """Release the lock. Safe to call again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None


def _lock(file: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def first_free_folder(base: Path) -> Path:
    """The first of `base`, `base-2`, `base-3` … that no running stack holds (another may take it a moment later)."""
    number = 1
    while True:
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        probe = FolderLock(folder)
        try:
            probe.take()
        except Failure:
            number += 1
            continue
        probe.release()
        return folder
