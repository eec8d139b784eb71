"""Write supabase/database.types.ts from the schema, using a temporary database: `make types`.

`--check` only compares.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer
from agent.stack.server_user import remove_folder

ROOT = Path(__file__).resolve().parent.parent
TYPES = ROOT / "supabase" / "database.types.ts"


def supabase(*arguments: str) -> list[str]:
    """The Supabase CLI of package.json, with telemetry and agent detection switched off."""
    found = shutil.which("supabase", path=str(ROOT / "node_modules" / ".bin"))
    if found is None:
        raise SystemExit("The Supabase CLI is not installed: run `make setup`.")
    return [found, *arguments, "--agent", "no", "--workdir", str(ROOT)]


@contextmanager
def scratch_database() -> Iterator[Database]:
    """A temporary server and database with the project's schema."""
    folder = Path(tempfile.mkdtemp(prefix="tradecopier-check-"))
    # the server may run as another user
    folder.chmod(0o711)
    server = PostgresServer(folder, durable=False)
    try:
        server.start()
        yield Database.prepared(server, "schema")
    finally:
        server.stop()
        remove_folder(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)


def generate(database: Database) -> str:
    """The types as the CLI generates them. Raises SystemExit with its output when it fails."""
    command = supabase("gen", "types", "--lang", "typescript", "--schema", "public", f"--remote={address(database)}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)
    _, found, types = done.stdout.partition("export type Json")
    if done.returncode or not found:
        raise SystemExit(f"supabase gen types failed:\n{done.stderr[-2000:]}{done.stdout[-500:]}")
    return formatted("// Made by `make types` from supabase/schemas/. Do not edit.\n" + found + types)


def address(database: Database) -> str:
    """The address for the CLI. It disables TLS; otherwise the CLI prints a warning about it to standard output."""
    return database.dsn_of("postgres") + "?sslmode=disable"


def formatted(text: str) -> str:
    biome = shutil.which("biome", path=str(ROOT / "node_modules" / ".bin"))
    if biome is None:
        raise SystemExit("Biome is not installed: run `make setup`.")
    command = [biome, "format", "--stdin-file-path=web/database.types.ts"]
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, timeout=60, check=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="check whether the file is up to date; write nothing")
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
