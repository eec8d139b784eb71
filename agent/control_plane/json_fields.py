"""JSON bytes and strict readers for fields of JSON objects: no floats for prices, no times without zone.

Every reader takes the output of `loads` and raises `WireError`, which names the field. `dumps` takes aware datetimes
and Decimals.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Final

import orjson

Json = Mapping[str, object]

#: the largest bigint of the database and integer of the journal
LARGEST: Final = 2**63 - 1


class WireError(ValueError):
    """A message does not have the form of docs/protocol.md; the text names the field."""


# ---------------------------------------------------------------------------------------------------------
# Bytes


def dumps(value: object) -> bytes:
    """JSON bytes. Aware datetimes become RFC 3339 in UTC, Decimals strings without exponents."""
    return orjson.dumps(value, default=_default, option=orjson.OPT_UTC_Z)


def loads(data: bytes | bytearray | memoryview | str) -> object:
    try:
        return orjson.loads(data)
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from error


def _default(value: object) -> object:
    if isinstance(value, Decimal):
        return format(value, "f")
    raise TypeError(f"{type(value).__name__} has no JSON form")


# ---------------------------------------------------------------------------------------------------------
# Fields


def as_object(value: object, name: str) -> Json:
    if not isinstance(value, dict):
        raise WireError(f"{name}: must be an object")
    return value


def as_list(value: object, name: str) -> Sequence[object]:
    if not isinstance(value, list):
        raise WireError(f"{name}: must be a list")
    return value


def text(raw: Json, name: str) -> str:
    value = raw.get(name)
    if not isinstance(value, str) or not value:
        raise WireError(f"{name}: must be a non-empty string")
    return value


def optional_text(raw: Json, name: str) -> str | None:
    value = raw.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise WireError(f"{name}: must be a string or null")
    return value


def integer(raw: Json, name: str, default: int | None = None) -> int:
    """A whole number, as a JSON number or a string (execution numbers are sent as strings)."""
    value = raw.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise WireError(f"{name}: must be a whole number")
    try:
        number = int(value)
    except ValueError as error:
        raise WireError(f"{name}: must be a whole number") from error
    if not -LARGEST - 1 <= number <= LARGEST:
        raise WireError(f"{name}: must be a whole number of at most 64 bits")
    return number


def optional_integer(raw: Json, name: str) -> int | None:
    return None if raw.get(name) is None else integer(raw, name)


def decimal(raw: Json, name: str) -> Decimal:
    """Lots, a price or money, as a string (a JSON float would have lost digits)."""
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise WireError(f"{name}: must be a number in a string")
    try:
        number = Decimal(value)
    except InvalidOperation as error:
        raise WireError(f"{name}: must be a number in a string") from error
    if not number.is_finite():
        raise WireError(f"{name}: must be a finite number")
    return number


def optional_decimal(raw: Json, name: str) -> Decimal | None:
    return None if raw.get(name) is None else decimal(raw, name)


def instant(raw: Json, name: str) -> datetime:
    value = raw.get(name)
    if not isinstance(value, str):
        raise WireError(f"{name}: must be a time")
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise WireError(f"{name}: must be a time with its zone")
        return moment.astimezone(UTC)
    except WireError:
        raise
    except (ValueError, OverflowError) as error:  # overflow: in UTC it is before the year 1 or after 9999
        raise WireError(f"{name}: must be a time in RFC 3339") from error


def optional_instant(raw: Json, name: str) -> datetime | None:
    return None if raw.get(name) is None else instant(raw, name)


def flag(raw: Json, name: str) -> bool:
    value = raw.get(name, False)
    if not isinstance(value, bool):
        raise WireError(f"{name}: must be true or false")
    return value


def one_of(raw: Json, name: str, allowed: frozenset[str], default: str | None = None) -> str:
    value = raw.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or value not in allowed:
        raise WireError(f"{name}: must be one of {', '.join(sorted(allowed))}")
    return value


def optional_one_of(raw: Json, name: str, allowed: frozenset[str]) -> str | None:
    return None if raw.get(name) is None else one_of(raw, name, allowed)
