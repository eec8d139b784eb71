"""What a running stack tells the commands of other terminals: a file that only its owner can read."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import httpx

from agent import private_file
from agent.failure import Failure
from agent.stack.schema import project_root

FILE: Final = "running.json"
#: folders of stacks whose data folder was not chosen: stack, stack-2, stack-3 …
DEFAULT_FOLDERS: Final = "stack*"
NOT_RUNNING: Final = "TC670"
_HEALTH_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunningStack:
    """Addresses and secrets of a running stack. `email` and `password` belong to the user that its commands act as.

    `paper` and `paper_token` are address and operator's token of its practice broker; empty: it runs none.
    """

    url: str
    publishable_key: str
    email: str
    password: str
    paper: str = ""
    paper_token: str = ""

    def write(self, folder: Path) -> None:
        private_file.write(folder / FILE, json.dumps(asdict(self)))


def default_folder() -> Path:
    """The first data folder of stacks of this checkout."""
    return project_root() / ".tradecopier" / "stack"


def forget(folder: Path) -> None:
    """The stack in this folder has ended."""
    (folder / FILE).unlink(missing_ok=True)


def find(folder: Path | None) -> RunningStack:
    """The stack that runs in `folder`; None: the only one that runs in a default folder.

    Raises `Failure` (TC670) if there is none, or more than one.
    """
    base = default_folder()
    folders = [folder] if folder is not None else sorted(base.parent.glob(DEFAULT_FOLDERS))
    found = {place: stack for place in folders if (stack := _read(place)) is not None and _answers(stack)}
    if len(found) > 1:
        raise Failure(
            f"{len(found)} stacks are running: {', '.join(map(str, found))}",
            "say which one with --data",
            code=NOT_RUNNING,
        )
    if not found:
        where = "" if folder is None else f" in {folder}"
        raise Failure(
            f"no stack is running{where}", "start one with `tradecopier up` in another terminal", code=NOT_RUNNING
        )
    [stack] = found.values()
    return stack


def _read(folder: Path) -> RunningStack | None:
    """None: no stack was started here, or it was of another version, or it ended cleanly."""
    try:
        return RunningStack(**json.loads((folder / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _answers(stack: RunningStack) -> bool:
    """False for a stack that was killed: it could not remove its file."""
    try:
        return httpx.get(f"{stack.url}/health", timeout=_HEALTH_S, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
