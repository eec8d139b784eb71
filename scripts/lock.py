"""Regenerate every lock file: `make lock`. The lock files contain no registry, host name or local path.

requirements.lock           everything of pyproject.toml, for Python 3.11+ on Linux, macOS and Windows, hash-pinned
requirements-nodeps.lock    packages whose own pins are outdated; installed without their dependencies
requirements-bench.lock     the peers that `bench queue` compares with, for a separate environment
requirements-bootstrap.lock uv itself, which `make setup` installs with pip and which then installs the rest
package-lock.json           npm, with the workspace web/, without addresses; each package with the hash of its content
functions/deno.lock         the Edge Functions' packages, in the same versions as in package-lock.json
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

#: the extras that their own documentation recommends for speed
BENCH_PEERS = "procrastinate\npgqueuer\nasyncpg\nuvloop; sys_platform != 'win32'\npsycopg[binary]\n"

#: names of systems in npm's platform packages (the last part of the package name)
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
    """Resolve in an empty directory, so that packages installed here do not narrow the lock to this platform."""
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
        for key in (
            "funding",
            "deprecated",
            *(() if package.get("link") else ("resolved",)),
        ):  # of a workspace: its folder
            package.pop(key, None)
    _add_platform_packages(packages)
    _add_hashes(npm, packages)
    (ROOT / "package-lock.json").write_text(json.dumps(lock, indent=2, ensure_ascii=False) + "\n")


def _add_platform_packages(packages: dict[str, dict[str, object]]) -> None:
    """Add other platforms' builds. If the registry lacks one, npm omits it from the lock, and then `npm ci` fails."""
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


def _add_hashes(npm: str, packages: dict[str, dict[str, object]]) -> None:
    """Add missing hashes from the registry: npm writes no hash for a package that it has not downloaded.

    Packages that the registry does not serve have no hash: tests/test_repository.py and docs/unverified.md list them.
    """
    for path, package in packages.items():
        if not path.startswith("node_modules/") or package.get("link") or "integrity" in package:
            continue
        wanted = f"{path.rpartition('node_modules/')[2]}@{package['version']}"
        asked = subprocess.run(
            [npm, "view", wanted, "dist.integrity", "--json"], cwd=ROOT, capture_output=True, text=True
        )
        if asked.returncode == 0 and asked.stdout.strip():
            package["integrity"] = json.loads(asked.stdout)
        else:
            print(f"  the registry does not serve {wanted}, so it has no hash in the lock file")


def lock_functions() -> None:
    """Write exact versions to deno.json, which hosted's bundler reads, and their dependencies with hashes to
    deno.lock."""
    deno, source = Path(sys.executable).with_name("deno"), ROOT / "functions"
    packages = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    config = json.loads((source / "deno.json").read_text())
    for name in config["imports"]:
        config["imports"][name] = f"npm:{name}@{packages[f'node_modules/{name}']['version']}"
    (source / "deno.json").write_text(json.dumps(config, indent=2) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "functions")
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("deno.lock"))
        options = [f"--config={copy / 'deno.json'}", "--node-modules-dir=none", "--frozen=false"]
        subprocess.run([deno, "cache", *options, *sorted(copy.glob("*/index.ts"))], cwd=copy, check=True)
        lock = json.loads((copy / "deno.lock").read_text())
    for package in lock["npm"].values():
        # the address of a registry other than the default
        package.pop("tarball", None)
    (source / "deno.lock").write_text(json.dumps(lock, indent=2) + "\n")


if __name__ == "__main__":
    print("Python …", flush=True)
    lock_python()
    print("npm …", flush=True)
    lock_npm()
    print("Deno …", flush=True)
    lock_functions()
    print("Locks are up to date. Review the diff, then commit it.")
