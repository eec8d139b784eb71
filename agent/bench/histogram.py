"""Distributions: percentiles, and a histogram with buckets that double in width."""

import math
from collections.abc import Iterable

from agent.testbed.figures import spread


def describe(values: Iterable[float]) -> dict[str, object]:
    """p50, p95, p99, max, n and `histogram`: the number of values up to each limit in ms (and above the previous
    limit)."""
    ordered = sorted(values)
    return {**spread(ordered), "histogram": _histogram(ordered)}


def _histogram(ordered: list[float]) -> dict[str, int]:
    counts: dict[str, int] = {}
    if not ordered:
        return counts
    top = max(0, math.ceil(math.log2(max(ordered[-1], 1))))
    edges = [2**power for power in range(top + 1)]
    below = 0
    for edge in edges:
        upto = sum(1 for value in ordered if value <= edge)
        counts[f"<={edge}"] = upto - below
        below = upto
    return counts
