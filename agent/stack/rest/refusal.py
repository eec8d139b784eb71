"""The requests that are refused before or after Postgres was asked, in PostgREST's words."""

from collections.abc import Iterable

import orjson
from aiohttp import web


class Refused(Exception):
    """An error in PostgREST's form: HTTP status, code, message, details (any JSON) and hint."""

    def __init__(
        self, status: int, code: str, message: str, *, details: object = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.details = details
        self.hint = hint

    def response(self) -> web.Response:
        """The error as a response."""
        body = {"code": self.code, "details": self.details, "hint": self.hint, "message": str(self)}
        return web.Response(
            status=self.status, body=orjson.dumps(body), content_type="application/json", charset="utf-8",
            headers={"Proxy-Status": f"PostgREST; error={self.code}"},
        )  # fmt: skip


def closest(wanted: str, among: Iterable[str], least: float = 0.33) -> str | None:
    """The name that resembles `wanted` most, for a hint; None when all are too different or one is the same."""
    best, score = None, least
    for name in sorted(set(among)):
        likeness = 1 - _distance(wanted.lower(), name.lower()) / max(len(wanted), len(name), 1)
        if likeness > score:
            best, score = name, likeness
    return None if best == wanted else best


def _distance(one: str, other: str) -> int:
    """How many letters have to be inserted, deleted or replaced (Levenshtein)."""
    row = list(range(len(other) + 1))
    for line, letter in enumerate(one, 1):
        before, row[0] = row[0], line
        for column, letter_there in enumerate(other, 1):
            before, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, before + (letter != letter_there)),
            )
    return row[-1]
