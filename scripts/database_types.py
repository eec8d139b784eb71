"""Write supabase/database.types.ts from the schema, on a database of its own: `make types`. `--check` only compares."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.local.database import Database
from agent.local.lodging import remove_folder
from agent.local.postgres import PostgresServer

ROOT = Path(__file__).resolve().parent.parent
TYPES = ROOT / "supabase" / "database.types.ts"


def supabase(*arguments: str) -> list[str]:
    """The Supabase CLI of package.json, told not to guess who calls it."""
    found = shutil.which("supabase", path=str(ROOT / "node_modules" / ".bin"))
    if found is None:
        raise SystemExit("The Supabase CLI is not installed: run `make setup`.")
    return [found, *arguments, "--agent", "no", "--workdir", str(ROOT)]


@contextmanager
def scratch_database() -> Iterator[Database]:
    """A database with the project's schema, on a server of its own; nothing of it is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="tradecopier-check-"))
    folder.chmod(0o711)  # the server may run as another user
    server = PostgresServer(folder, durable=False)
    try:
        server.start()
        yield Database.prepared(server, "schema")
    finally:
        server.stop()
        remove_folder(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)


def generate(database: Database) -> str:
    """The types as the CLI writes them. Raises SystemExit with what it said when it fails."""
    command = supabase("gen", "types", "--lang", "typescript", "--schema", "public", f"--remote={address(database)}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)
    _, found, types = done.stdout.partition("export type Json")
    if done.returncode or not found:
        raise SystemExit(f"supabase gen types failed:\n{done.stderr[-2000:]}{done.stdout[-500:]}")
    return formatted("// Made by `make types` from supabase/schemas/. Do not edit.\n" + found + types)


def address(database: Database) -> str:
    """For the CLI: loopback has no TLS, and the CLI complains on standard output when it must find that out itself."""
    return database.dsn + ("&" if "?" in database.dsn else "?") + "sslmode=disable"


def formatted(text: str) -> str:
    biome = shutil.which("biome", path=str(ROOT / "node_modules" / ".bin"))
    if biome is None:
        raise SystemExit("Biome is not installed: run `make setup`.")
    command = [biome, "format", "--stdin-file-path=web/database.types.ts"]
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, timeout=60, check=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="say whether the file is up to date; write nothing")
    check = parser.parse_args().check
    with scratch_database() as database:
        text = generate(database)
    if TYPES.exists() and TYPES.read_text() == text:
        print(f"{TYPES.name} is up to date")
        return 0
    if check:
        print(f"{TYPES.name} differs from the schema: run `make types`", file=sys.stderr)
        return 1
    TYPES.write_text(text)
    print(f"wrote {TYPES.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
