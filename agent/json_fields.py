"""JSON bytes and the fields of JSON objects, read strictly: a float is no price, a naive time is no time.

Every reader raises `WireError`, which names the field. They take what `loads` gives; `dumps` takes aware datetimes and Decimals.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

import orjson

Json = Mapping[str, object]


class WireError(ValueError):
    """A message is not of the form in docs/protocol.md; the text names the field."""


# ---------------------------------------------------------------------------------------------------------
# Bytes


def dumps(value: object) -> bytes:
    """JSON bytes; aware datetimes become RFC 3339 in UTC, Decimals plain strings (never exponents)."""
    return orjson.dumps(value, default=_default, option=orjson.OPT_UTC_Z)


def loads(data: bytes | bytearray | memoryview | str) -> object:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise WireError(f"not JSON: {error}") from error


def _default(value: object) -> object:
    if isinstance(value, Decimal):
        return format(value, "f")
    raise TypeError(f"{type(value).__name__} has no JSON form")


# ---------------------------------------------------------------------------------------------------------
# Fields


def as_object(value: object, name: str) -> Json:
    if not isinstance(value, dict):
        raise WireError(f"{name}: an object is wanted")
    return value


def as_list(value: object, name: str) -> Sequence[object]:
    if not isinstance(value, list):
        raise WireError(f"{name}: a list is wanted")
    return value


def text(raw: Json, name: str) -> str:
    value = raw.get(name)
    if not isinstance(value, str) or not value:
        raise WireError(f"{name}: a text is wanted")
    return value


def optional_text(raw: Json, name: str) -> str | None:
    value = raw.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise WireError(f"{name}: a text or null is wanted")
    return value


def integer(raw: Json, name: str, default: int | None = None) -> int:
    """A whole number, as JSON number or as string (numbers of executions travel as strings)."""
    value = raw.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise WireError(f"{name}: a whole number is wanted")
    try:
        return int(value)
    except ValueError as error:
        raise WireError(f"{name}: a whole number is wanted") from error


def optional_integer(raw: Json, name: str) -> int | None:
    return None if raw.get(name) is None else integer(raw, name)


def decimal(raw: Json, name: str) -> Decimal:
    """Lots, a price or money: a string (a JSON float would already have lost digits)."""
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise WireError(f"{name}: a number in a string is wanted")
    try:
        number = Decimal(value)
    except InvalidOperation as error:
        raise WireError(f"{name}: a number in a string is wanted") from error
    if not number.is_finite():
        raise WireError(f"{name}: a finite number is wanted")
    return number


def optional_decimal(raw: Json, name: str) -> Decimal | None:
    return None if raw.get(name) is None else decimal(raw, name)


def instant(raw: Json, name: str) -> datetime:
    value = raw.get(name)
    if not isinstance(value, str):
        raise WireError(f"{name}: a time is wanted")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise WireError(f"{name}: a time in RFC 3339 is wanted") from error
    if moment.tzinfo is None:
        raise WireError(f"{name}: a time with its zone is wanted")
    return moment.astimezone(UTC)


def optional_instant(raw: Json, name: str) -> datetime | None:
    return None if raw.get(name) is None else instant(raw, name)


def flag(raw: Json, name: str) -> bool:
    value = raw.get(name, False)
    if not isinstance(value, bool):
        raise WireError(f"{name}: true or false is wanted")
    return value


def one_of(raw: Json, name: str, allowed: frozenset[str], default: str | None = None) -> str:
    value = raw.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or value not in allowed:
        raise WireError(f"{name}: one of {', '.join(sorted(allowed))} is wanted")
    return value


def optional_one_of(raw: Json, name: str, allowed: frozenset[str]) -> str | None:
    return None if raw.get(name) is None else one_of(raw, name, allowed)
