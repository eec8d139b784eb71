"""Finds the user and folders for Postgres when the caller is root: it must run as a user that can enter each folder."""

import contextlib
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.failure import Failure

ROOTS_LODGINGS: Final = Path("/var/lib/tradecopier")
CANDIDATES: Final = ("postgres", "nobody")

if sys.platform != "win32":
    import pwd


def server_user() -> str | None:
    """The user that Postgres runs as.

    None: the caller; for root, which Postgres refuses: an existing unprivileged user.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    for name in CANDIDATES:
        with contextlib.suppress(KeyError):
            if pwd.getpwnam(name).pw_uid != 0:
                return name
    raise Failure(
        "Postgres refuses to run as root and neither the user postgres nor nobody exists",
        "run the command as an ordinary user, or create one: useradd --system postgres",
        code="TC622",
    )


def can_enter(path: Path, user: str) -> bool:
    """Whether `user` may enter every folder above `path` (and `path` itself, if it is a folder)."""
    entry = pwd.getpwnam(user)
    for folder in [path, *path.parents]:
        with contextlib.suppress(FileNotFoundError):
            status = folder.stat()
            if not stat.S_ISDIR(status.st_mode):
                continue
            if status.st_uid == entry.pw_uid:
                needed = stat.S_IXUSR
            elif status.st_gid == entry.pw_gid:
                needed = stat.S_IXGRP
            else:
                needed = stat.S_IXOTH
            if not status.st_mode & needed:
                return False
    return True


def own_folder(path: Path, user: str | None) -> Path:
    """Make `path` a private folder of `user` and return its real location.

    When the user cannot reach it (a checkout in root's home), `path` becomes a link into /var/lib/tradecopier.
    """
    if user is None:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.resolve()
    if not path.is_symlink() and not path.exists() and not can_enter(path.parent.resolve(), user):
        place = shared_folder(f"data-{_digest(path.absolute())}")
        path.symlink_to(place)
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    entry = pwd.getpwnam(user)
    if place.stat().st_uid != entry.pw_uid:
        os.chown(place, entry.pw_uid, entry.pw_gid)
    return place


def shared_folder(name: str) -> Path:
    """A folder below /var/lib/tradecopier, which only root can write and everybody may enter."""
    ROOTS_LODGINGS.mkdir(parents=True, exist_ok=True)
    ROOTS_LODGINGS.chmod(0o711)
    return ROOTS_LODGINGS / name


def readable_copy(source: Path, user: str, name: str) -> Path:
    """`source` itself if `user` can reach it, otherwise a copy that the user can reach (made once per name)."""
    if can_enter(source, user):
        return source
    copy = shared_folder(name)
    if not copy.exists():
        copy.parent.mkdir(exist_ok=True)
        copy.parent.chmod(0o755)
        partial = copy.with_name(f"{copy.name}.{os.getpid()}")
        shutil.copytree(source, partial, symlinks=True)
        partial.chmod(0o755)
        try:
            partial.rename(copy)
        # another start created it first
        except OSError:
            shutil.rmtree(partial)
    return copy


def remove_folder(path: Path) -> None:
    """Remove a folder made by `own_folder`, and the target of its link."""
    if path.is_symlink():
        shutil.rmtree(path.resolve(), ignore_errors=True)
        path.unlink()
    elif path.exists():
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary data folder for a stack or a server; it is removed completely afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="tradecopier-"))
    # the server may run as another user
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        remove_folder(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]
