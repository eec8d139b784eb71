"""Write what the code needs to know of the reasons and warnings in docs/errors.md: `make api`. `--check` only compares.

docs/errors.md is the one place where a reason has its origin and its words. From there come web/lib/reason-texts.ts,
the words of the dashboard, and supabase/schemas/base/reason.sql: the words for alerts, and the one list of codes that
mean "nothing to do", from which terminal, dashboard and JSON count.

People read these words, so no name of the code stands in them: a setting's name stands in brackets of its own behind
its words, (`max_leverage`), and is left out here.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from database_types import formatted

ROOT = Path(__file__).resolve().parent.parent
ERRORS = ROOT / "docs" / "errors.md"
TEXTS = ROOT / "web" / "lib" / "reason-texts.ts"
WORDS = ROOT / "supabase" / "schemas" / "base" / "reason.sql"
#: the origin of the reasons below each heading
ORIGINS: Final[Mapping[str, str]] = {
    "### Refused by a rule": "rule",
    "### Refused by the broker": "broker",
    "### Decided by the agent": "agent",
    "### Nothing to do": "nothing",
}
NOTE: Final = "by `make api` from docs/errors.md. Do not edit."


def table(page: str, heading: str) -> dict[str, list[str]]:
    """Code → its other cells, without markup. A row may have several codes. Raises SystemExit if there is no row."""
    section = page.partition(f"\n{heading}")[2].split("\n#", 1)[0]
    found: dict[str, list[str]] = {}
    for row in re.findall(r"^\|(.*)\|$", section, re.MULTILINE):
        codes, *words = (cell.strip() for cell in row.split("|"))
        found |= {code: [in_words(word) for word in words] for code in re.findall(r"`(\w+)`", codes)}
    if not found:
        raise SystemExit(f"{ERRORS.name} has no table of codes below {heading!r}: add it, or change ORIGINS here")
    return found


def in_words(cell: str) -> str:
    """The cell without markup and without names in brackets. Raises SystemExit if a name of the code is left."""
    words = re.sub(r" \((`\w+`(, )?)+\)", "", cell).replace("`", "")
    if name := re.search(r"\w+_\w+", words):
        raise SystemExit(
            f"{ERRORS.name}: people would read {name[0]!r} in {words!r}: say it in words, with the name behind them in "
            f"brackets of its own: (`{name[0]}`)"
        )
    return words


def texts(page: str) -> str:
    """web/lib/reason-texts.ts."""
    reasons = {
        origin: {code: [cells[0], *(cells[1:2] or ["none"])] for code, cells in table(page, heading).items()}
        for heading, origin in ORIGINS.items()
    }
    warnings = {code: cells[0] for code, cells in table(page, "## Warnings").items()}
    return formatted(
        f"// Made {NOTE}\n\n"
        "/** Every reason code: [what happened, what to do]. */\n"
        f"export const REASONS = {json.dumps(reasons, ensure_ascii=False)} as const;\n\n"
        "/** How a copy differs from its master's trade. */\n"
        f"export const WARNINGS = {json.dumps(warnings, ensure_ascii=False)} as const;\n"
    )


def schema(page: str) -> str:
    """supabase/schemas/base/reason.sql."""
    nothing = ", ".join(f"'{code}'" for code in sorted(table(page, "### Nothing to do")))
    said: dict[str, str] = {}
    # what an order ends with is told in the words of the broker or the agent
    for origin in ("broker", "agent", "rule", "nothing"):
        heading = next(heading for heading, name in ORIGINS.items() if name == origin)
        said = {code: cells[0] for code, cells in table(page, heading).items()} | said
    cases = "".join(f"    when '{code}' then\n{quoted(words, '      ')}\n" for code, words in sorted(said.items()))
    listed = textwrap.fill(nothing, 110, initial_indent="    ", subsequent_indent="    ")
    return (
        f"-- Reasons in words, and the reasons that refuse nothing. Made {NOTE}\n\n"
        "create function private.nothing_to_do() returns text[]\n"
        "language sql immutable\nset search_path = ''\nas $$\n"
        f"  select array[\n{listed}]\n$$;\n"
        "comment on function private.nothing_to_do() is\n"
        "  'The reasons that are no refusals: there was nothing (left) to copy. No other list of them exists.';\n"
        "-- views ask it in the name of their reader\n"
        "grant execute on function private.nothing_to_do() to authenticated, service_role;\n\n"
        "create function private.reason_words(p_code text) returns text\n"
        "language sql immutable\nset search_path = ''\nas $$\n"
        f"  select case p_code\n{cases}    else replace(p_code, '_', ' ') end\n$$;\n"
        "comment on function private.reason_words(text) is\n"
        "  'What a reason means, for sentences; of an unknown code its own words. Null: null.';\n"
        "grant execute on function private.reason_words(text) to authenticated, service_role;\n"
    )


def quoted(words: str, indent: str) -> str:
    """An SQL string in as many lines as it needs."""
    lines = textwrap.wrap(words.replace("'", "''"), 100, drop_whitespace=False)
    return "\n".join(f"{indent}'{line}'" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="say whether the files are up to date; write nothing")
    check = parser.parse_args().check
    page = ERRORS.read_text(encoding="utf-8")
    outdated = [
        (file, text)
        for file, text in ((TEXTS, texts(page)), (WORDS, schema(page)))
        if not file.exists() or file.read_text(encoding="utf-8") != text
    ]
    for file, text in outdated:
        if check:
            print(f"{file.relative_to(ROOT)} differs from {ERRORS.name}: run `make api`", file=sys.stderr)
        else:
            file.write_text(text, encoding="utf-8")
            print(f"wrote {file.relative_to(ROOT)}")
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
