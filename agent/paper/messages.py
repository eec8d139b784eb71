"""JSON lines between the paper broker and its clients: one object per line, decimals as strings, times RFC 3339 UTC.

Request `{"id", "op", …}`,
reply `{"id", "ok": …}` or `{"id", "error": {"code", "message"}}`; push `{"push": "changes", "changes": […]}`.
"""

from decimal import Decimal
from functools import cache
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

#: longest line that either side accepts; a book with 50,000 deals fits
LINE_LIMIT = 64 * 1024 * 1024


class MalformedMessage(ValueError):
    """A line does not follow the protocol; the text names the field."""


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be encoded as JSON")


def encode(message: object) -> bytes:
    """One line, including its newline."""
    return orjson.dumps(
        message, default=_plain, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS
    )


def parse(line: bytes) -> dict[str, Any]:
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise MalformedMessage(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise MalformedMessage("not a JSON object")
    return message


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def decode(shape: Any, value: object) -> Any:
    """Validate `value` and convert it to `shape`, a type or a union (NaN and infinity are refused).

    The result has that shape; callers declare it in their own return types.
    """
    try:
        return _adapter(shape).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "value"
        raise MalformedMessage(f"{where}: {first['msg']}") from None
