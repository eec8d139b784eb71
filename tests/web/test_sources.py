"""Rules for the page's source that no linter checks, and its texts for reasons."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"
SOURCES = {
    path.relative_to(WEB).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("app", "components", "lib")
    for path in sorted((WEB / folder).rglob("*.ts*"))
}


def code(text: str) -> str:
    """The source without comments, strings and JSX text."""
    return re.sub(r"/\*.*?\*/|//[^\n]*|\"[^\"\n]*\"|`[^`]*`|>[^<>{}=;]*<", " ", text, flags=re.DOTALL)


def test_only_two_files_touch_supabase_js() -> None:
    assert {name for name, text in SOURCES.items() if "@supabase/" in text} == {"lib/queries.ts"}
    assert {name for name, text in SOURCES.items() if re.search(r"\bclient\b", code(text))} == {
        "lib/queries.ts",
        "lib/use-live.ts",
    }


def test_the_types_of_the_database_are_imported_as_types_only() -> None:
    imports = [line for text in SOURCES.values() for line in text.splitlines() if "database.types" in line]
    assert imports
    assert [line for line in imports if not line.startswith("import type ")] == []


def test_nothing_is_cast_and_nothing_is_any() -> None:
    loose = re.compile(r"(?<!import \*)\bas (?!const\b)\w+|\bany\b|@ts-(?:ignore|expect-error|nocheck)")
    assert [(name, found[0]) for name, text in SOURCES.items() for found in loose.finditer(code(text))] == []


def test_the_words_of_reasons_and_warnings_are_those_of_the_documentation() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "reason_texts.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
