"""The environment of the peers that `bench queue` compares with: `make bench` installs it; the product never needs
it."""

import os
import subprocess
from pathlib import Path
from typing import Final

from agent.failure import Failure
from agent.stack.schema import project_root

ENVIRONMENT: Final = Path(".tradecopier") / "bench-venv"
PROBE: Final = "import asyncpg, pgqueuer, procrastinate, psycopg, uvloop"
INSTALL: Final = "run `make bench`, or only `python scripts/bench_peers.py`: it installs them in a separate environment"


def peer_python() -> Path:
    """The interpreter of the peers' environment. Raises `Failure` (TC661) with what is missing."""
    folder = project_root() / ENVIRONMENT
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        raise Failure(
            f"the peers of this benchmark are not installed: there is no {ENVIRONMENT}", INSTALL, code="TC661"
        )
    probe = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, timeout=60, check=False)
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Failure(f"the peers of this benchmark are not installed completely: {last}", INSTALL, code="TC661")
    return python
