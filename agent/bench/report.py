"""The figures of a benchmark for people: a sentence, its counts, a table of its times, and the machine."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeGuard

from agent.testbed.text_table import milliseconds, text_table

Figures = Mapping[str, object]
PERCENTILES: Final = ("p50", "p95", "p99", "max")
#: shown by name elsewhere
_APART: Final = ("benchmark", "machine")


def report(figures: Figures) -> str:
    """Lines for people. `figures`: what the benchmark writes to `--json`."""
    lines = [_sentence(figures), ""]
    values = [(name, value) for name, value in _leaves(figures, "") if not isinstance(value, Mapping)]
    width = max((len(name) for name, _ in values), default=0) + 2
    lines += [f"{name:{width}}{value}" for name, value in values]
    if times := _times(figures):
        lines += ["", *times]
    return "\n".join([*lines, "", _machine(_mapping(figures["machine"]))])


# --- the sentence ---------------------------------------------------------------------------------------------


def _sentence(figures: Figures) -> str:
    sentences: Mapping[str, Callable[[Figures], str]] = {
        "copy": _copy,
        "fanout": _fanout,
        "burst": _burst,
        "floods": _floods,
        "queue": _queue,
        "history": _history,
        "tenants": _tenants,
    }
    return sentences[str(figures["benchmark"])](figures)


def _copy(figures: Figures) -> str:
    times = _first_spread(figures)
    half, most = _ms(times, "p50"), _ms(times, "p95")
    count, true = figures["orders"], figures.get("ours_true_clock_ms")
    text = f"{count} orders were copied: half were sent within {half} of the change at the master, 95 % within {most}"
    return (
        f"{text}; by the one clock of the brokers half within {_ms(true, 'p50')}." if _is_spread(true) else f"{text}."
    )


def _fanout(figures: Figures) -> str:
    sizes = _mapping(figures["followers"])
    parts = [f"{size} followers {_ms(_first_spread(_mapping(found)), 'p50')}" for size, found in sizes.items()]
    return f"Time until the order of the last follower was sent (median): {', '.join(parts)}."


def _burst(figures: Figures) -> str:
    opens, closes = _mapping(figures["opens"]), _mapping(figures["closes"])
    lost, twice = (int(str(opens[name])) + int(str(closes[name])) for name in ("lost", "twice"))
    return f"Of {opens['expected']} opens and {closes['expected']} closes, {lost} were lost and {twice} made twice."


def _floods(figures: Figures) -> str:
    parts = []
    for kind, found in _mapping(figures["floods"]).items():
        calm, flooded = (_ms(_first_spread(_mapping(_mapping(found)[name])), "p95") for name in ("without", "with"))
        parts.append(f"{_words(kind)} {calm} → {flooded}")
    return f"95 % of the orders were sent within, without a flood → with it: {', '.join(parts)}."


def _queue(figures: Figures) -> str:
    parts = [
        f"{_words(name)} {_value(_mapping(found)['jobs_per_second'])}"
        for name, found in _mapping(figures["queues"]).items()
    ]
    return f"Jobs per second (median round): {', '.join(parts)}."


def _history(figures: Figures) -> str:
    return f"With years of closed trades an event costs {_value(figures['p50_ratio'])} times as much as without them."


def _tenants(figures: Figures) -> str:
    closes = _mapping(figures["closes_ms"])
    parts = [f"{_words(name)} {_ms(_mapping(times), 'p95')}" for name, times in closes.items()]
    return f"95 % of the closes of the quiet tenant were sent within, by load: {', '.join(parts)}."


# --- counts and times -----------------------------------------------------------------------------------------


def _is_spread(value: object) -> TypeGuard[Figures]:
    return isinstance(value, Mapping) and "p50" in value


def _leaves(figures: Figures, before: str) -> Iterator[tuple[str, object]]:
    """Every value with its path in words: texts of plain values, and distributions as they are."""
    for name, value in figures.items():
        if (not before and name in _APART) or (name == "latency_ms" and "ours_ms" in figures):  # the same times
            continue
        path = f"{before} {_words(name)}".strip()
        if isinstance(value, Mapping) and _is_spread(value):
            yield path, value
        elif isinstance(value, Mapping) and all(isinstance(inner, str) for inner in value.values()):
            yield path, ", ".join(f"{key} {inner}" for key, inner in value.items()) or "–"
        elif isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, _value(value)


def _times(figures: Figures) -> list[str]:
    rows = [
        [name, *(milliseconds(value[percentile]) for percentile in PERCENTILES), str(value["n"])]
        for name, value in _leaves(figures, "")
        if isinstance(value, Mapping)
    ]
    return text_table(["time in ms", *PERCENTILES, "n"], rows) if rows else []


def _first_spread(figures: Figures) -> Figures:
    """The benchmark's main distribution: by convention the first one of its figures."""
    for _, value in _leaves(figures, ""):
        if isinstance(value, Mapping):
            return value
    raise ValueError("the figures contain no distribution")


def _ms(spread: Figures, percentile: str) -> str:
    return f"{milliseconds(spread[percentile])} ms"


def _mapping(value: object) -> Figures:
    if not isinstance(value, Mapping):
        raise TypeError(f"an object was expected, the figures contain {value!r}")
    return value


def _words(name: str) -> str:
    """A key as words; the table's header names the unit."""
    return name.removesuffix("_ms").replace("_", " ").replace("/", " / ")


def _value(value: object) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        case list() | tuple():
            return ", ".join(_value(one) for one in value) or "–"
        case _:
            return str(value)


# --- the machine ----------------------------------------------------------------------------------------------


def _machine(machine: Figures) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in _mapping(machine["versions"]).items())
    rows = [
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, load before {_value(machine['load_before'])}"),
        ("system", str(machine["system"])),
        ("versions", f"{versions}, commit {_value(machine['commit'])}"),
    ]
    return "\n".join(f"{name:10}{value}" for name, value in rows)
