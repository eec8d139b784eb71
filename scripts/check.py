"""Run all checks that are not tests: `make check`.

Runs every check even when an earlier one fails, prints the output of those that failed, and ends with a list of what
was left out because it does not exist yet. Exit status 1 if a check failed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from api_docs import PAGE, page
from database_types import TYPES, address, generate, scratch_database, supabase

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
#: stops the CLI and Deno from checking for updates and sending telemetry
QUIET = {"DO_NOT_TRACK": "1", "SUPABASE_TELEMETRY_DISABLED": "1", "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}
TIMEOUT = 600


@dataclass(frozen=True, slots=True)
class Verdict:
    """`said` is printed when the check failed; `left_out` is the reason why there was nothing to check."""

    ok: bool
    said: str = ""
    left_out: str | None = None


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> Verdict:
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, **QUIET, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, f"{Path(command[0]).name} did not finish within {TIMEOUT} s")
    except FileNotFoundError:
        return Verdict(False, f"{command[0]} is missing: run `make setup`")
    return Verdict(done.returncode == 0, done.stdout.strip())


def tool(name: str) -> Path:
    """A command of the virtual environment."""
    return Path(shutil.which(name, path=str(BIN)) or BIN / name)


def node_tool(name: str) -> Path:
    """A command of an npm package."""
    binaries = ROOT / "node_modules" / ".bin"
    return Path(shutil.which(name, path=str(binaries)) or binaries / name)


def ruff() -> Verdict:
    lint, layout = run(tool("ruff"), "check", "--quiet", "."), run(tool("ruff"), "format", "--check", ".")
    return Verdict(lint.ok and layout.ok, "\n".join(one.said for one in (lint, layout) if not one.ok))


def mypy() -> Verdict:
    """Check the package, then each test folder by itself: their conftest modules share a name, and tests import
    neighbours."""
    tests = ROOT / "tests"
    folders = sorted(path for path in tests.iterdir() if path.is_dir() and any(path.rglob("*.py")))
    alone = [folder for folder in folders if any(folder.rglob("conftest.py"))]
    together = [folder for folder in folders if folder not in alone]
    support = os.pathsep.join(str(tests / folder) for folder in ("support", "sql/support", "sql/random"))
    # a test may compare a ticket (a NewType) with a plain string
    lenient = (tool("mypy"), "--no-strict-equality", "--cache-dir=.mypy_cache/tests")
    runs = [run(tool("mypy")), run(*lenient, *sorted(tests.glob("*.py")))]
    runs += [run(*lenient, *together, MYPYPATH=support)]
    for folder in alone:
        inner = sorted({path.parent for path in folder.rglob("conftest.py")} - {folder})
        path = os.pathsep.join([support, str(folder)])
        skipped = [part for each in inner for part in ("--exclude", f"/{each.name}/")]
        runs.append(run(*lenient, *skipped, folder, MYPYPATH=path))
        runs += [run(*lenient, each, MYPYPATH=os.pathsep.join([path, str(each)])) for each in inner]
    return Verdict(all(one.ok for one in runs), "\n".join(one.said for one in runs if not one.ok))


def imports() -> Verdict:
    return run(tool("lint-imports"))


def biome() -> Verdict:
    return run(node_tool("biome"), "check", "--error-on-warnings", ".")


def deno() -> Verdict:
    entries = sorted(ROOT.glob("functions/*/index.ts"))
    if not entries:
        return Verdict(True, left_out="deno check: there are no Edge Functions yet")
    locked = ("--config=functions/deno.json", "--lock=functions/deno.lock", "--frozen")
    return run(tool("deno"), "check", *locked, "--node-modules-dir=manual", "--cached-only", *entries)


def tsc() -> Verdict:
    return run(node_tool("tsc"), "--noEmit", "--project", "web")


def migration() -> Verdict:
    """One migration until the first release: it must be the concatenation of the schema files."""
    return run(sys.executable, "-m", "agent.stack.schema", "check")


def database() -> Verdict:
    """Check the advisors, the generated types and docs/api.md against a database that was just made from the schema."""
    with scratch_database() as scratch:
        levels = ("--level", "warn", "--fail-on", "warn")
        advisors = run(*supabase("db", "advisors", f"--remote={address(scratch)}", *levels))
        types = generate(scratch)
        with scratch.connect() as connection:
            api = page(connection)
    failed = [] if advisors.ok else [advisors.said]
    if not TYPES.exists() or TYPES.read_text() != types:
        failed.append(f"{TYPES.name} differs from the schema: run `make types`")
    if not PAGE.exists() or PAGE.read_text() != api:
        failed.append(f"{PAGE.name} differs from the schema: run `make api`")
    return Verdict(not failed, "\n".join(failed))


CHECKS: dict[str, Callable[[], Verdict]] = {
    "ruff (rules and layout)": ruff,
    "mypy --strict": mypy,
    "import rules": imports,
    "Biome": biome,
    "deno check": deno,
    "tsc": tsc,
    "migration = schemas": migration,
    "database advisors and types": database,
}


def guarded(check: Callable[[], Verdict]) -> Verdict:
    """Run a check. An exception counts as a failure, and the other checks still run."""
    try:
        return check()
    except (Exception, SystemExit) as error:
        return Verdict(False, f"{type(error).__name__}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run only checks whose name contains one of these words")
    words = parser.parse_args().words
    chosen = {name: check for name, check in CHECKS.items() if not words or any(word in name for word in words)}
    failed, left_out = [], []
    for number, (name, check) in enumerate(chosen.items(), 1):
        print(f"[{number}/{len(chosen)}] {name} … ", end="", flush=True)
        began = time.monotonic()
        verdict = guarded(check)
        print(
            "left out"
            if verdict.left_out
            else f"{'ok' if verdict.ok else 'FAILED'} ({time.monotonic() - began:.1f} s)",
            flush=True,
        )
        if verdict.left_out:
            left_out.append(verdict.left_out)
        if not verdict.ok:
            failed.append(name)
            print(verdict.said, flush=True)
    for line in left_out:
        print(f"left out: {line}")
    done = len(chosen) - len(failed) - len(left_out)
    print(
        f"{done} checks passed, {len(failed)} failed, {len(left_out)} left out"
        + (f": {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
