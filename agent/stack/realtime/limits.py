"""Hosted's quotas, and the rate meter that measures against them."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Quotas of one project. The defaults are those of hosted's Pro plan with the spend cap off.

    Rates are averages over `window_s` in `window_buckets` steps, as hosted counts them, so a short burst may far exceed
    them. The two `*_backoff_ms` are hosted's deliberate delays before it refuses (2,000 and 5,000 there). They are 0
    here, because they only slow down tests and start-up and change nothing for a client.
    """

    connections: int = 10_000
    messages_per_second: float = 2_500
    joins_per_second: float = 2_500
    channels_per_connection: int = 100
    payload_kb: int = 3_000
    presence_per_second: float = 1_000
    presence_calls: int = 5
    presence_calls_window_s: float = 30
    window_s: float = 60
    window_buckets: int = 12
    private_only: bool = False
    replay_messages: int = 25
    token_check_s: float = 300
    idle_timeout_s: float = 60
    no_channel_timeout_s: float = 600
    connect_backoff_ms: float = 0
    channel_backoff_ms: float = 0
    database_wait_s: float = 3
    send_buffer_bytes: int = 16_000_000

    @classmethod
    def free(cls) -> "Limits":
        """Hosted's Free plan."""
        return cls(
            connections=200, messages_per_second=100, joins_per_second=100, payload_kb=256, presence_per_second=20
        )

    @classmethod
    def pro(cls) -> "Limits":
        """Hosted's Pro plan with the spend cap on."""
        return cls(connections=500, messages_per_second=500, joins_per_second=500, presence_per_second=50)

    @property
    def payload_bytes(self) -> int:
        """The largest broadcast payload; hosted allows 500 bytes on top of the round figure."""
        return self.payload_kb * 1000 + 500


class RateMeter:
    """A moving average over a window of buckets; `over` once more than `per_second × window` items were counted."""

    def __init__(
        self, per_second: float, window_s: float, buckets: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window_s = window_s
        self._allowed = per_second * window_s
        self._width = window_s / buckets
        self._counts = [0] * buckets
        self._clock = clock
        self._slot = int(clock() / self._width)
        self._total = 0

    def _turn(self) -> None:
        slot = int(self._clock() / self._width)
        passed = min(slot - self._slot, len(self._counts))
        for step in range(passed):
            index = (self._slot + 1 + step) % len(self._counts)
            self._total -= self._counts[index]
            self._counts[index] = 0
        if passed:
            # After a long pause every bucket is empty; the position follows the clock in any case.
            self._slot = slot

    def count(self, things: int = 1) -> None:
        self._turn()
        self._counts[self._slot % len(self._counts)] += things
        self._total += things

    def fits(self, things: int) -> bool:
        """Whether this many items at once would stay within one second's share, on top of the current average."""
        self._turn()
        return self._total + things * self._window_s <= self._allowed

    @property
    def over(self) -> bool:
        self._turn()
        return self._total >= self._allowed
