"""JSON values with junk at each of their places, for calls that must refuse it by name."""

import copy
from collections.abc import Iterator
from typing import Any

TYPES: list[Any] = [None, True, 5, -1, 1.5, 10**25, [], [1], {}, {"a": 1}]
TEXTS = ["", "x", "1e131000", "NaN", "-1", "99999999999999999999", "infinity", "-infinity", "now", "x" * 3000, "\x07"]
#: stands for "the field is missing"
LEFT_OUT = ...
JUNK: list[Any] = [*TYPES, *TEXTS, LEFT_OUT]

Path = tuple[str | int, ...]


def paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """Every place inside a JSON value, itself first."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*at, key))


def spoiled(value: Any, path: Path, junk: Any) -> Any:
    """A copy of the value with junk at that place."""
    if not path:
        return junk
    whole = copy.deepcopy(value)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    if junk is not LEFT_OUT:
        inner[path[-1]] = junk
    elif isinstance(inner, dict):
        del inner[path[-1]]
    return whole
