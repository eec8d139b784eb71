"""What a request's headers ask for: Prefer, Accept, Range and the schema."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from agent.stack.rest.refusal import Refused
from agent.stack.rest.scanner import whole_number
from agent.stack.rest.writing import Resolution

Count = Literal["exact", "planned", "estimated"]
Returned = Literal["representation", "minimal", "headers-only"]
Form = Literal["array", "object", "csv", "plan"]

#: wire names of the answers that can be given, in PostgREST's spelling
TYPES: Final = {
    "application/json": "array",
    "*/*": "array",
    "application/*": "array",
    "application/vnd.pgrst.array+json": "array",
    "application/vnd.pgrst.array": "array",
    "application/vnd.pgrst.object+json": "object",
    "application/vnd.pgrst.object": "object",
    "text/csv": "csv",
}
_RANGE: Final = re.compile(r"(?:items=)?([0-9]{1,18})-([0-9]{0,18})")
_FOR: Final = re.compile(r'for="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Preferences:
    """The header Prefer. `applied`: the preferences that are honoured, for the answer's Preference-Applied."""

    count: Count | None = None
    returned: Returned | None = None
    resolution: Resolution | None = None
    missing_default: bool = False
    rollback: bool = False
    strict: bool = False
    max_affected: int | None = None
    applied: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def read_preferences(headers: Sequence[str], *, may_roll_back: bool) -> Preferences:
    """Parse Prefer. Raises Refused (PGRST122) for unknown preferences when `handling=strict` is among them."""
    wanted: dict[str, str] = {}
    unknown: list[str] = []
    for header in headers:
        for word in (part.strip() for part in header.split(",")):
            name, _, text = word.partition("=")
            if _is_known(name, text):
                wanted.setdefault(name, text)
            elif word:
                unknown.append(word)
    if wanted.get("handling") == "strict" and unknown:
        raise Refused(
            400, "PGRST122", "Invalid preferences given with handling=strict",
            details=f"Invalid preferences: {', '.join(unknown)}",
        )  # fmt: skip
    if not may_roll_back:
        wanted.pop("tx", None)
    strict = wanted.get("handling") == "strict"
    limit = wanted.get("max-affected") if strict else None
    return Preferences(
        count=_COUNTS.get(wanted.get("count", "")),
        returned=_RETURNED.get(wanted.get("return", "")),
        resolution=_RESOLUTIONS.get(wanted.get("resolution", "")),
        missing_default=wanted.get("missing") == "default",
        rollback=wanted.get("tx") == "rollback",
        strict=strict,
        max_affected=None if limit is None else whole_number(limit),
        applied=tuple(f"{name}={text}" for name, text in wanted.items()),
    )


_COUNTS: Final[Mapping[str, Count]] = {"exact": "exact", "planned": "planned", "estimated": "estimated"}
_RETURNED: Final[Mapping[str, Returned]] = {
    "representation": "representation", "minimal": "minimal", "headers-only": "headers-only",
}  # fmt: skip
_RESOLUTIONS: Final[Mapping[str, Resolution]] = {
    "merge-duplicates": "merge-duplicates", "ignore-duplicates": "ignore-duplicates",
}  # fmt: skip
_VALUES: Final[Mapping[str, frozenset[str]]] = {
    "count": frozenset(_COUNTS),
    "return": frozenset(_RETURNED),
    "resolution": frozenset(_RESOLUTIONS),
    "missing": frozenset({"default", "null"}),
    "tx": frozenset({"commit", "rollback"}),
    "handling": frozenset({"strict", "lenient"}),
    "params": frozenset({"single-object"}),
}


def _is_known(name: str, text: str) -> bool:
    if name == "max-affected":
        return text.isascii() and text.isdigit()
    return text in _VALUES.get(name, ()) or name == "timezone"


@dataclass(frozen=True, slots=True)
class Answer:
    """The form of the answer. `plan_options`: of EXPLAIN, for the form `plan`."""

    form: Form
    content_type: str
    strip_nulls: bool = False
    plan_format: Literal["text", "json"] = "text"
    plan_options: tuple[str, ...] = ()
    of: "Answer | None" = field(default=None)


def read_accept(header: str, *, plans: bool) -> Answer:
    """The first form of the header Accept that can be given. Raises Refused (PGRST107)."""
    for wanted in header.split(",") if header.strip() else ["*/*"]:
        name, *parameters = (part.strip() for part in wanted.split(";"))
        if name.startswith("application/vnd.pgrst.plan") and plans:
            return _plan(name, wanted, parameters)
        form = TYPES.get(name)
        if form == "csv":
            return Answer("csv", "text/csv; charset=utf-8")
        strip = "nulls=stripped" in parameters
        if form == "object":
            kind = "application/vnd.pgrst.object+json" + ("; nulls=stripped" if strip else "")
            return Answer("object", f"{kind}; charset=utf-8", strip)
        if form == "array":
            kind = "application/vnd.pgrst.array+json; nulls=stripped" if strip else "application/json"
            return Answer("array", f"{kind}; charset=utf-8", strip)
    raise Refused(406, "PGRST107", f"None of these media types are available: {header}")


def _plan(name: str, wanted: str, parameters: Sequence[str]) -> Answer:
    found = _FOR.search(wanted)
    inner = read_accept(found[1].replace("for=", "") if found is not None else "", plans=False)
    listed = next((one.removeprefix("options=") for one in parameters if one.startswith("options=")), "")
    options = tuple(one for one in listed.split("|") if one in ("analyze", "verbose", "settings", "buffers", "wal"))
    kind = "json" if name.endswith("+json") else "text"
    suffix = "json" if kind == "json" else "text"
    return Answer(
        "plan", f"application/vnd.pgrst.plan+{suffix}; charset=utf-8",
        plan_format="json" if kind == "json" else "text", plan_options=options, of=inner,
    )  # fmt: skip


def read_range(header: str | None) -> tuple[int, int | None]:
    """(offset, limit) of the header Range. Raises Refused (PGRST103)."""
    found = _RANGE.fullmatch(header.strip()) if header is not None else None
    if found is None:
        return 0, None
    first = int(found[1])
    if not found[2]:
        return first, None
    if int(found[2]) < first:
        raise Refused(
            416, "PGRST103", "Requested range not satisfiable",
            details="The lower boundary must be lower than or equal to the upper boundary in the Range header.",
        )  # fmt: skip
    return first, int(found[2]) - first + 1


def read_profile(profile: str | None, schemas: Sequence[str]) -> str:
    """The schema of the request: the first exposed one unless a header names another. Raises Refused (PGRST106)."""
    if profile is None:
        return schemas[0]
    if profile not in schemas:
        raise Refused(
            406, "PGRST106", f"Invalid schema: {profile}",
            hint=f"Only the following schemas are exposed: {', '.join(schemas)}",
        )  # fmt: skip
    return profile
