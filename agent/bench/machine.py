"""The environment of a measurement: commit, processor, versions. A figure is meaningless without them."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

from agent.testbed.quiescence import Observer


async def machine(observer: Observer) -> dict[str, object]:
    [row] = await observer.rows("select current_setting('server_version') as version")
    return machine_facts(str(row["version"]))


def machine_facts(postgres: str) -> dict[str, object]:
    """Collect the facts. `postgres` is the server's version."""
    return {
        "commit": _commit(),
        "cpu": _processor(),
        "cores": psutil.cpu_count(),
        "load_before": [round(load, 2) for load in psutil.getloadavg()],
        "system": platform.platform(),
        "versions": {
            "tradecopier": metadata.version("tradecopier"),
            "python": platform.python_version(),
            "postgres": postgres,
        },
    }


def _commit() -> str | None:
    """The commit of the checkout, with `+` if there are uncommitted changes; None outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    try:
        head = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() or None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
