"""The results of a run as lines for people; `--json` writes the same figures for programs."""

from collections.abc import Mapping

_WIDTH = 19


def summary(figures: Mapping[str, object]) -> str:
    """One line per result. `figures`: those of `agent.testbed.figures.measure`, plus `failover` if there was one."""
    executions = _mapping(figures["executions"])
    counts = ", ".join(f"{executions[name]} {name}" for name in ("completed", "expired", "cancelled"))
    results = [
        ("master's trades", str(figures["events"])),
        ("executions", f"{counts}, {executions['open']} in flight"),
        ("rejected", _counts(executions["rejected"])),
        ("not copied", _counts(figures["skipped"])),
        ("success rate", _percent(figures["success_rate"])),
        ("latency", _latency(_mapping(figures["latency_ms"]))),
        ("stages (median)", _times(_mapping(figures["stages_ms"]), "decide", "transport", "broker")),
        ("followers' books", _books(_mapping(figures["divergence"]))),
        ("duplicate orders", str(figures["duplicates"])),
        ("unexplained trades", str(figures["unexplained"])),
    ]
    if "failover" in figures:
        results.append(("failover", _failover(_mapping(figures["failover"]))))
    return "\n".join(f"{name:{_WIDTH}}{value}" for name, value in results)


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(f"an object was expected, the figures contain {value!r}")
    return value


def _counts(value: object) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(_mapping(value).items())) or "none"


def _percent(value: object) -> str:
    return f"{value * 100:.4g} %" if isinstance(value, float) else "no execution has ended"


def _times(values: Mapping[str, object], *names: str) -> str:
    known = [(name, value) for name in names if isinstance(value := values[name], float | int)]
    return ", ".join(f"{name} {value:.1f} ms" for name, value in known) or "no completed orders"


def _latency(values: Mapping[str, object]) -> str:
    times = _times(values, "p50", "p95", "p99", "max")
    return f"{times} ({values['n']} orders, from detection to sending)" if values["n"] else times


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
