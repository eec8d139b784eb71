"""The results of a run for people: a sentence, then a table; `--json` writes the same figures for programs."""

from collections.abc import Mapping
from typing import Final

from agent.testbed.text_table import milliseconds, text_table

_WIDTH: Final = 19
#: distributions of times among the figures, by key
TIMES: Final[Mapping[str, str]] = {"whole_ms": "whole, fill → fill", "ours_ms": "ours, seen → sent"}
PERCENTILES: Final = ("p50", "p95", "p99", "max")


def summary(figures: Mapping[str, object]) -> str:
    """A sentence, one line per result, and a table of times.

    `figures`: those of `agent.testbed.figures.measure`, plus `failover` if there was one.
    """
    executions = _mapping(figures["executions"])
    counts = ", ".join(f"{executions[name]} {name}" for name in ("completed", "expired", "cancelled"))
    results = [
        ("master's trades", str(figures["events"])),
        ("trades", _trades(_mapping(figures["trades"]))),
        ("executions", f"{counts}, {executions['open']} in flight"),
        ("rejected", _counts(executions["rejected"])),
        ("not copied", _counts(figures["not_copied"])),
        ("success rate", _percent(figures["success_rate"])),
        ("followers' books", _books(_mapping(figures["divergence"]))),
        ("duplicate orders", str(figures["duplicates"])),
        ("unexplained trades", str(figures["unexplained"])),
    ]
    if "failover" in figures:
        results.append(("failover", _failover(_mapping(figures["failover"]))))
    lines = [_sentence(figures), "", *(f"{name:{_WIDTH}}{value}" for name, value in results)]
    return "\n".join([*lines, "", *_times(figures)])


def _sentence(figures: Mapping[str, object]) -> str:
    """Whether everything is as it should be, in words."""
    apart = _mapping(figures["divergence"])
    faults = [
        _number(figures["duplicates"], "order was made twice", "orders were made twice"),
        _number(figures["unexplained"], "trade has no explanation", "trades have no explanation"),
        _number(apart["missing"], "copy is missing", "copies are missing"),
        _number(apart["orphan"], "copy has no master", "copies have no master"),
        _number(apart["volume_mismatch"], "copy has a wrong volume", "copies have a wrong volume"),
    ]
    if wrong := [fault for fault in faults if fault]:
        return f"Something is wrong: {', '.join(wrong)}."
    executions = _mapping(figures["executions"])
    rejected = _mapping(executions["rejected"]).values()
    done = _count(executions["completed"])
    asked = done + sum(map(_count, [*rejected, executions["expired"], executions["open"]]))
    if not asked:
        return "No order was sent: there was nothing to copy."
    if done < asked:
        carried_out = f"{done} of {asked} orders were carried out; below is what became of the others."
    else:
        carried_out = (
            f"All {asked} orders were carried out, none twice." if asked > 1 else "The only order was carried out."
        )
    return f"{carried_out} Every follower holds what it should."


def _times(figures: Mapping[str, object]) -> list[str]:
    rows = []
    for key, label in TIMES.items():
        spread = figures.get(key)
        if isinstance(spread, Mapping) and spread["n"]:
            cells = [milliseconds(spread[name]) for name in PERCENTILES]
            rows.append([label, *cells, str(spread["n"])])
    if not rows:
        return ["times: no order was completed, so there are none"]
    stages = _mapping(figures["stages_ms"])
    rows += [[f"  {name}", milliseconds(value), "", "", "", ""] for name, value in stages.items()]
    return text_table(["time in ms", *PERCENTILES, "orders"], rows)


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(f"an object was expected, the figures contain {value!r}")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"a count was expected, the figures contain {value!r}")
    return value


def _number(value: object, one: str, several: str) -> str:
    """The count with its words; empty if it is 0."""
    count = _count(value)
    return f"{count} {one if count == 1 else several}" if count else ""


def _counts(value: object) -> str:
    """Numbers by name, without those that are 0, in words."""
    named = [(name.replace("_", " "), count) for name, count in sorted(_mapping(value).items()) if count]
    return ", ".join(f"{count} {name}" for name, count in named) or "none"


def _trades(trades: Mapping[str, object]) -> str:
    """The trades by result; a trade of the master is one for each copier."""
    results = _counts({name: count for name, count in trades.items() if name != "all"})
    return f"{trades['all']} (one per follower): {results}" if trades["all"] else results


def _percent(value: object) -> str:
    return f"{value * 100:.4g} %" if isinstance(value, float) else "no execution has ended"


def _books(divergence: Mapping[str, object]) -> str:
    if not any(divergence.values()):
        return "as expected"
    labels = {"missing": "missing", "orphan": "orphaned", "volume_mismatch": "with a wrong volume"}
    return "not as expected: " + ", ".join(f"{divergence[name]} {label}" for name, label in labels.items())


def _failover(failover: Mapping[str, object]) -> str:
    seconds, accounts = failover["seconds"], failover["accounts"]
    if not isinstance(seconds, float):
        return f"{accounts} accounts had not been taken over when the run ended"
    return f"other VPSes took over {accounts} accounts within {seconds:.1f} s"
