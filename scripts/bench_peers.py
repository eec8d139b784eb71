"""Install the peers of `tradecopier bench queue` in a separate environment: `make bench` calls this first.

The product does not depend on them. The packages are those of requirements-bench.lock, with their hashes.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-bench.lock"
ENVIRONMENT = ROOT / ".tradecopier" / "bench-venv"
STAMP = ENVIRONMENT / ".lock"
#: far longer than a slow connection needs
TIMEOUT_S = 1200


def main() -> None:
    wanted = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    print("… installing the peers that bench queue measures against", file=sys.stderr)
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    uv = [sys.executable, "-m", "uv"]
    for command in (
        [*uv, "venv", "--quiet", "--python", sys.executable, str(ENVIRONMENT)],
        [*uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python", str(python), "-r", str(LOCK)],
    ):
        if subprocess.run(command, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False).returncode:
            raise SystemExit(
                "The peers could not be installed (see above). To fix it: check the network (behind a proxy with a"
                " certificate of its own, set SSL_CERT_FILE), then run it again"
            )
    STAMP.write_text(wanted)


if __name__ == "__main__":
    main()
