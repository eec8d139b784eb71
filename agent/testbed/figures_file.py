"""The file that a run writes its figures into (`--json FILE`)."""

import json
from collections.abc import Mapping
from pathlib import Path

from agent.failure import Failure


def check_writable(file: Path | None) -> None:
    """Check, before anything is started, that the figures can be written to `file`. Raises `Failure`."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise Failure(f"{file} cannot be written ({error.strerror})", "choose another file", code="TC655") from error


def write(file: Path, figures: Mapping[str, object]) -> None:
    file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
