"""How a broker executes the orders of one book: costs, delays and random failures, reproducible by seed."""

import random
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Rates are probabilities from 0 to 1 per order; equal seeds and equal requests give equal outcomes.

    Only orders of connected programs (`origin` expert) are subject to latency, rejects, requotes and partial fills;
    slippage affects every market execution.
    """

    seed: int = 0
    latency_ms_min: float = 0
    latency_ms_max: float = 0
    #: adverse or favourable, uniformly distributed up to this many points
    slippage_points_max: int = 0
    reject_rate: float = 0
    requote_rate: float = 0
    partial_rate: float = 0
    #: amount in the account's currency per lot and side
    commission_per_lot: Decimal = Decimal(0)
    #: margin level in percent at which positions are closed (stop-out)
    stop_out_percent: Decimal = Decimal(50)
    #: after a partial close, the remaining position gets a new ticket (as in MetaTrader 4)
    retickets: bool = False
    #: positions and orders are numbered separately, and a filled order's position keeps its number where that is free
    #: (as in MetaTrader 5 and cTrader)
    same_numbers: bool = False
    #: a hedging account that must not hold opposite positions in one symbol (as in the USA)
    no_hedging: bool = False
    #: positions of one symbol and side may only be closed in the order in which they were opened (as in the USA)
    fifo: bool = False
    #: the comment of a program is kept; some brokers replace it
    keeps_comments: bool = True
    #: market orders may carry stop loss and take profit ("market execution" brokers refuse this)
    levels_on_open: bool = True
    #: pending orders may have an expiry; otherwise only good-till-cancelled orders are accepted
    timed_orders: bool = True
    #: orders per second for one book; 0 = unlimited
    orders_per_second_max: int = 0


@dataclass(frozen=True, slots=True)
class Mood:
    """The random draws for one order, always drawn together, so that the sequence does not depend on the requests."""

    latency_s: float
    slippage_points: int
    reject: bool
    requote: bool
    #: fraction of the volume to fill, 1 = all
    fill_share: Decimal


class Moods:
    """The seeded sequence of `Mood`s of one book."""

    def __init__(self, profile: Profile, drawn: int = 0) -> None:
        self._profile = profile
        self._random = random.Random(profile.seed)
        self.drawn = 0
        for _ in range(drawn):
            self.draw()

    def draw(self) -> Mood:
        profile, chance = self._profile, self._random
        self.drawn += 1
        latency = chance.uniform(profile.latency_ms_min, profile.latency_ms_max) / 1000
        slippage = chance.randint(-profile.slippage_points_max, profile.slippage_points_max)
        reject, requote, partial, share = (chance.random() for _ in range(4))
        return Mood(
            latency_s=latency,
            slippage_points=slippage,
            reject=reject < profile.reject_rate,
            requote=requote < profile.requote_rate,
            fill_share=Decimal(str(round(share, 6))) if partial < profile.partial_rate else Decimal(1),
        )


def share_of(lots: Decimal, share: Decimal, step: Decimal, least: Decimal) -> Decimal:
    """`share` of `lots`, floored to `step`, but at least `least` and at most `lots`."""
    floored = (lots * share / step).to_integral_value(ROUND_DOWN) * step
    return min(lots, max(least, floored))
