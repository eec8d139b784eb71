"""Write what the code needs to know of the reasons and warnings in docs/errors.md: `make api`. `--check` only compares.

docs/errors.md is the one place where a reason has its origin and its words. From there come web/lib/reason-texts.ts,
the words of the dashboard, and agent/testbed/reasons.py, the codes that mean "nothing to do".
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from database_types import formatted

ROOT = Path(__file__).resolve().parent.parent
ERRORS = ROOT / "docs" / "errors.md"
TEXTS = ROOT / "web" / "lib" / "reason-texts.ts"
CODES = ROOT / "agent" / "testbed" / "reasons.py"
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
        found |= {code: [word.replace("`", "") for word in words] for code in re.findall(r"`(\w+)`", codes)}
    if not found:
        raise SystemExit(f"{ERRORS.name} has no table of codes below {heading!r}: add it, or change ORIGINS here")
    return found


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


def codes(page: str) -> str:
    """agent/testbed/reasons.py."""
    lines = "".join(f'        "{code}",\n' for code in sorted(table(page, "### Nothing to do")))
    return (
        f'"""Reasons that are no refusals: there was nothing (left) to copy.\n\nMade {NOTE}\n"""\n\n'
        f"NOTHING_TO_DO: frozenset[str] = frozenset(\n    {{\n{lines}    }}\n)\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="say whether the files are up to date; write nothing")
    check = parser.parse_args().check
    page = ERRORS.read_text(encoding="utf-8")
    outdated = [
        (file, text)
        for file, text in ((TEXTS, texts(page)), (CODES, codes(page)))
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
