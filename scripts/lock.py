"""Regenerate every lock file: `make lock`. The locks name no registry, no host and no path of a machine.

requirements.lock           everything of pyproject.toml, for Python 3.11+ on Linux, macOS and Windows, hash-pinned
requirements-nodeps.lock    packages whose own pins are too old to be obeyed; installed without their dependencies
requirements-bench.lock     the peers that `bench queue` measures against; in an environment of their own
requirements-bootstrap.lock uv itself, which `make setup` installs with pip and which then installs the rest
package-lock.json           npm, with the workspace web/, without addresses
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Made by `make lock`. Do not edit.\n"

#: ctrader-open-api pins Twisted 24.3 and a pure-Python protobuf of 2022; only its message classes are used
WITHOUT_DEPENDENCIES = "ctrader-open-api==0.9.2\n"

#: all that their own documentation names for speed
BENCH_PEERS = "procrastinate\npgqueuer\nasyncpg\nuvloop; sys_platform != 'win32'\npsycopg[binary]\n"

#: how platform packages of npm name what they fit (the last parts of their names)
NODE_OS = {"linux": "linux", "darwin": "darwin", "windows": "win32", "win32": "win32", "android": "android"}
NODE_CPU = {"x64": "x64", "arm64": "arm64"}


def lock_python() -> None:
    compile_ = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    compile_ += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    with tempfile.TemporaryDirectory() as scratch:
        bootstrap, nodeps, peers = (Path(scratch, f"{name}.in") for name in ("bootstrap", "nodeps", "bench"))
        nodeps.write_text(WITHOUT_DEPENDENCIES)
        peers.write_text(BENCH_PEERS)
        for name, arguments in (
            ("requirements.lock", ["--group", "dev", "pyproject.toml"]),
            ("requirements-nodeps.lock", ["--no-deps", str(nodeps)]),
            ("requirements-bench.lock", [str(peers)]),
        ):
            made = subprocess.run([*compile_, *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout
            (ROOT / name).write_text(HEADER + made)
        pinned = re.search(r"^uv==\S+", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
        if pinned is None:
            raise SystemExit("uv is missing from the development dependencies in pyproject.toml: add it there")
        bootstrap.write_text(pinned[0] + "\n")
        made = subprocess.run([*compile_, str(bootstrap)], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        (ROOT / "requirements-bootstrap.lock").write_text(HEADER + made)


def lock_npm() -> None:
    """Resolve in an empty directory, so that what is installed here does not narrow the lock to this platform."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm was not found: install Node 20 or newer")
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("package.json", "web/package.json", "package-lock.json", ".npmrc"):
            if (ROOT / name).exists():
                Path(scratch, name).parent.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, Path(scratch, name))
        subprocess.run([npm, "install", "--package-lock-only", "--ignore-scripts"], cwd=scratch, check=True)
        lock = json.loads(Path(scratch, "package-lock.json").read_text())
    packages = lock["packages"]
    for package in packages.values():
        for key in ("funding", "deprecated", *(() if package.get("link") else ("resolved",))):  # of a workspace: its folder
            package.pop(key, None)
    _add_platform_packages(packages)
    (ROOT / "package-lock.json").write_text(json.dumps(lock, indent=2, ensure_ascii=False) + "\n")


def _add_platform_packages(packages: dict[str, dict[str, object]]) -> None:
    """A registry that lacks the build of another platform makes npm leave it out, and then `npm ci` refuses the lock."""
    for package in list(packages.values()):
        wanted = package.get("optionalDependencies")
        for name, version in (wanted if isinstance(wanted, dict) else {}).items():
            path = f"node_modules/{name}"
            if path in packages or not re.fullmatch(r"\d[\w.+-]*", version):
                continue
            parts = re.split(r"[-/]", name)
            fits: dict[str, object] = {"version": version, "optional": True}
            fits["cpu"] = [NODE_CPU[part] for part in parts if part in NODE_CPU]
            fits["os"] = [NODE_OS[part] for part in parts if part in NODE_OS]
            if "linux" in parts:
                fits["libc"] = ["musl" if "musl" in parts else "glibc"]
            packages[path] = fits
    ordered = sorted(packages.items())
    packages.clear()
    packages.update(ordered)


if __name__ == "__main__":
    print("Python …", flush=True)
    lock_python()
    print("npm …", flush=True)
    lock_npm()
    print("Locks are up to date. Look at the difference, then commit them.")
