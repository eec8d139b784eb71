"""What became of a trade, in words: no name of the code stands in a line for people."""

import pytest

from agent.practice.outcome import describe

ROW: dict[str, object] = {
    "event": "closed", "side": "buy", "symbol": "EURUSD", "filled_lots": "0.50", "fill_price": "1.1000100",
    "message": None, "reason_words": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"status": "copied"}, "copied to Half: closed 0.5 EURUSD at 1.10001"),
        (
            {"status": "not_copied", "reason_words": "the size is under the follower's minimum"},
            "not copied to Half: the size is under the follower's minimum",
        ),
        (
            {"status": "not_copied", "reason_words": "not enough free margin", "message": "no money"},
            "not copied to Half: not enough free margin: no money",
        ),
        (
            {"status": "nothing_to_do", "reason_words": "the position was not copied; the reason is at its opening"},
            "Half: nothing to do (the position was not copied; the reason is at its opening)",
        ),
        (
            {"status": "partly", "reason_words": "not enough free margin"},
            "copied to Half: closed 0.5 EURUSD at 1.10001, only a part: not enough free margin",
        ),
    ],
)
def test_a_result_is_told_in_words(row: dict[str, object], line: str) -> None:
    assert describe("Half", ROW | row) == line
