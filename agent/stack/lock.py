"""One stack per data folder: a lock that the kernel releases when its holder ends, whatever the cause."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Final

from agent import paths
from agent.failure import Failure

#: another stack uses the folder
IN_USE: Final = "TC626"


class FolderLock:
    """Held from `take` until `release` or until the process ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None

    def take(self) -> None:
        """Create the folder and lock it. Raises Failure when another stack holds the lock (TC626) or the
        folder cannot be written. Safe to call again."""
        if self._file is not None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise paths.unwritable(self._folder, error, "choose another folder with --data") from error
        try:
            _lock(file)
        except OSError as error:
            os.close(file)
            raise Failure(
                f"another stack is using the data folder {self._folder}",
                "stop it, or choose another folder with --data",
                code=IN_USE,
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
        except Failure as failure:
            if failure.code != IN_USE:
                raise
            number += 1
            continue
        probe.release()
        return folder
