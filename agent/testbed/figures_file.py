"""The file that a run writes its figures into (`--json FILE`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agent import paths

_FIX: Final = "choose another file for --json"


def check_writable(file: Path | None) -> None:
    """Check, before anything is started, that the figures can be written to `file`. Raises `Failure`."""
    if file is not None:
        paths.require_file(file, _FIX)


def write(file: Path, figures: Mapping[str, object]) -> None:
    """Write the figures as JSON. Raises `Failure` if the disk is full or the file has become unwritable."""
    try:
        file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise paths.unwritable(file, error, _FIX) from error
