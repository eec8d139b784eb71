"""Rules of the page's source that no linter knows, and its words for reasons."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"
SOURCES = {
    path.relative_to(WEB).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("app", "components", "lib")
    for path in sorted((WEB / folder).rglob("*.ts*"))
}
KINDS = {
    "rule": "Refused by a rule",
    "broker": "Refused by the broker",
    "agent": "Decided by the agent",
    "nothing": "Nothing to do",
}


def code(text: str) -> str:
    """Without comments, strings and what JSX says to people."""
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


def test_every_reason_has_the_words_of_the_documentation() -> None:
    documentation = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").split("## Reasons", 1)[1]
    for kind, title in KINDS.items():
        assert _of_page(kind) == _of_documentation(documentation, title), f"web/lib/reasons.ts, {kind}"


def test_every_warning_has_the_words_of_the_documentation() -> None:
    section = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").split("## Warnings", 1)[1].split("\n#", 1)[0]
    rows = (row.split("|") for row in re.findall(r"^\|(.*)\|$", section, re.MULTILINE)[2:])
    documented = {name: words.strip() for codes, words in rows for name in re.findall(r"`(\w+)`", codes)}
    page = SOURCES["lib/reasons.ts"].split("export const WARNINGS = {", 1)[1].split("\n}", 1)[0]
    assert dict(re.findall(r'(\w+):\s+"([^"]*)"', page)) == documented


def _of_documentation(text: str, title: str) -> dict[str, tuple[str, str]]:
    section = text.split(f"### {title}", 1)[1].split("\n#", 1)[0]
    found = {}
    for row in re.findall(r"^\|(.*)\|$", section, re.MULTILINE):
        cells = [cell.strip() for cell in row.split("|")]
        words = [cell.replace("`", "") for cell in cells[1:]]
        for name in re.findall(r"`(\w+)`", cells[0]):
            found[name] = (words[0], words[1] if len(words) > 1 else "none")
    return found


def _of_page(kind: str) -> dict[str, tuple[str, str]]:
    section = re.split(rf"^  {kind}: {{", SOURCES["lib/reasons.ts"], maxsplit=1, flags=re.MULTILINE)[1].split("\n  }", 1)[0]
    entry = r'(\w+): \[\s*"((?:[^"\\]|\\.)*)",\s*"((?:[^"\\]|\\.)*)",?\s*\]'
    return {name: (what.replace('\\"', '"'), todo.replace('\\"', '"')) for name, what, todo in re.findall(entry, section)}
