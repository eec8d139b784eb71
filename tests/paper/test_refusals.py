"""The broker's refusal reasons: each one is documented, and no others appear."""

import re
from pathlib import Path

from agent.paper.refusals import MESSAGES, RETRYABLE, rejected

DOCUMENTED = Path(__file__).parents[2] / "docs" / "errors.md"


def test_every_refusal_is_documented_as_retried_or_not() -> None:
    section = DOCUMENTED.read_text(encoding="utf-8").split("### Refused by the broker")[1].split("\n### ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", section, re.MULTILINE))
    assert MESSAGES.keys() <= rows.keys()
    assert {code for code in MESSAGES if rows[code].startswith("retried")} == RETRYABLE


def test_a_code_that_nobody_knows_counts_as_an_unexplained_no() -> None:
    result = rejected("something_new", "what the broker said")
    assert (result.reason, result.retryable, result.message) == ("rejected", False, "what the broker said")
