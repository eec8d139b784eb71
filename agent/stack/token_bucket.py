"""A token bucket: limits the average rate and the burst."""

import time
from collections.abc import Callable


class TokenBucket:
    """Holds up to `burst` tokens and gains `per_second`. Tokens may be taken in advance: the taker must then wait."""

    __slots__ = ("_burst", "_clock", "_filled_at", "_per_second", "_tokens")

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._filled_at = clock()

    def wait_for(self, tokens: float) -> float:
        """Seconds until `tokens` would be available; 0 = now. Takes nothing."""
        self._fill()
        return max(0.0, (tokens - self._tokens) / self._per_second)

    def take(self, tokens: float, longest_wait: float = 0.0) -> float | None:
        """Take `tokens` and return the seconds to wait; if that exceeds `longest_wait`, take nothing and return
        None."""
        wait = self.wait_for(tokens)
        if wait > longest_wait:
            return None
        self._tokens -= tokens
        return wait

    @property
    def is_full(self) -> bool:
        """Whether the bucket is full again, so that it can be discarded."""
        self._fill()
        return self._tokens >= self._burst

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
