"""Files and folders that a command must be able to write: one check, one error."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Final

from agent.failure import Failure

CODE: Final = "TC614"
#: errors that say that a path cannot be written, whatever was done with it
UNWRITABLE: Final = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    }
)


def unwritable(path: object, error: Exception | str, fix: str) -> Failure:
    """The failure for a path that cannot be written. `error`: what the system said."""
    why = error if isinstance(error, str) else getattr(error, "strerror", None) or str(error)
    return Failure(f"{path} cannot be written ({why})", fix, code=CODE)


def require_folder(path: Path, fix: str) -> None:
    """Create the folder, readable for its owner only if it is new, and check that files can be made in it.

    Raises `Failure` (TC614).
    """
    probe = path / f".probe.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise unwritable(path, error, fix) from error


def require_file(path: Path, fix: str) -> None:
    """Check that the file can be written; its folder is created. A file that did not exist is not left behind.

    Raises `Failure` (TC614).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise unwritable(path, error, fix) from error


def temporary_folder(name: str) -> Path:
    """A new temporary folder that other users may enter but not list (Postgres may run as one). Raises `Failure`."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"tradecopier-{name}-"))
        folder.chmod(0o711)
    except OSError as error:
        raise unwritable("the folder for temporary files", error, "free disk space, or set TMPDIR") from error
    return folder


def failure_of(error: OSError) -> Failure | None:
    """The failure behind an error that no code expected; None if it is not about a path."""
    about_a_path = error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)
    if error.errno not in UNWRITABLE or not about_a_path:
        return None
    where = "a file" if error.filename is None else os.fsdecode(error.filename)
    return unwritable(where, error, "free disk space, give this user write permission, or choose another path")
