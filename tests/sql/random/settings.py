"""Random settings of copiers, and what they say a follower shall hold: computed here from the masters' events alone,
exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction
from math import floor
from typing import Any

CENT = Decimal("0.01")
#: every volume of a master is a multiple of this
STEP = Decimal("0.1")
BALANCES = {"M1": Decimal(10000), "M2": Decimal(5000), "H": Decimal(10000), "N": Decimal(10000), "C": Decimal(10000)}
#: mode and value; the plain ones more than once
SIZINGS = [
    ("multiplier", "1"),
    ("multiplier", "0.5"),
    ("multiplier", "1"),
    ("multiplier", "0.35"),
    ("multiplier", "0.05"),
    ("fixed", "0.20"),
    ("fixed", "0.03"),
    ("balance_ratio", "0.5"),
]
#: how many numbers choose one copier's settings
CHOICES = 6


def floored(lots: Decimal) -> Decimal:
    return (lots / CENT).to_integral_value(ROUND_FLOOR) * CENT


@dataclass(frozen=True, slots=True)
class Setting:
    """One copier. The defaults are a plain copy."""

    sizing_mode: str = "multiplier"
    sizing_value: str = "1"
    reverse: bool = False
    sl_mode: str = "price"
    tp_mode: str = "price"
    min_policy: str = "skip"
    max_policy: str = "cap"
    sides: str = "both"
    #: of the follower's symbol
    lots_max: Decimal = Decimal(50)
    lots_min: Decimal = CENT
    #: follower's balance by the master's
    ratio: Decimal = Decimal(1)

    @classmethod
    def chosen(
        cls, master: str, follower: str, numbers: Sequence[int], lots_max: Decimal, lots_min: Decimal
    ) -> "Setting":
        sizing, reverse, levels, least, most, sides = numbers
        mode, value = SIZINGS[sizing]
        return cls(
            sizing_mode=mode,
            sizing_value=value,
            reverse=reverse == 7,
            sl_mode="none" if levels == 7 else "price",
            tp_mode="none" if levels == 6 else "price",
            min_policy="force_min" if least >= 6 else "skip",
            max_policy="split" if most >= 4 else "cap",
            sides={6: "buy", 7: "sell"}.get(sides, "both"),
            lots_max=lots_max,
            lots_min=lots_min,
            ratio=BALANCES[follower] / BALANCES[master],
        )

    def columns(self) -> dict[str, Any]:
        names = ("sizing_mode", "sizing_value", "reverse", "sl_mode", "tp_mode", "min_policy", "max_policy", "sides")
        return {name: getattr(self, name) for name in names}

    @property
    def factor(self) -> Decimal:
        return Decimal(self.sizing_value) * (self.ratio if self.sizing_mode == "balance_ratio" else 1)

    @property
    def rounds_only(self) -> bool:
        """Two increases and one of both differ by no more than what is rounded."""
        return self.sizing_mode != "fixed" and (self.max_policy == "split" or self.lots_max == 50)

    @property
    def exact(self) -> bool:
        """Every volume of a master has its copy without rounding, however it came about."""
        return self.rounds_only and self.lots_min == CENT and floored(self.factor * STEP) == self.factor * STEP

    def size(self, lots: Decimal, side: str) -> Decimal:
        """Lots of one open or increase of so many lots of the master; 0: it is refused."""
        if self.sides not in ("both", side):
            return Decimal(0)
        wanted = floored(Decimal(self.sizing_value) if self.sizing_mode == "fixed" else lots * self.factor)
        if wanted < self.lots_min:
            forced = self.min_policy == "force_min" and (
                self.sizing_mode == "fixed" or self.lots_min <= 5 * lots * self.factor
            )
            wanted = self.lots_min if forced else Decimal(0)
        return min(wanted, self.lots_max) if self.max_policy == "cap" else wanted

    def side(self, side: str) -> str:
        return {"buy": "sell", "sell": "buy"}[side] if self.reverse else side

    def levels(self, sl: Any, tp: Any) -> tuple[Decimal | None, Decimal | None]:
        if self.reverse:
            sl, tp = tp, sl
        asked = (None if self.sl_mode == "none" else sl, None if self.tp_mode == "none" else tp)
        sl, tp = (None if level is None else Decimal(level) for level in asked)
        return sl, tp


@dataclass(slots=True)
class Course:
    """What the settings say of one copy, from the events that were accepted.

    Between `low` and `high` lies only what depends on when increases were decided: two at once are rounded (or fixed)
    once.
    """

    setting: Setting
    follower: str
    ticket: str = ""
    seq: tuple[int, int] = (0, 0)
    side: str | None = None
    lots: Decimal = Decimal(0)
    low: Fraction = Fraction(0)  # a third of 0.30 is 0.10, not less
    high: Fraction = Fraction(0)
    #: everything that was ever decided, reductions left out
    total: Fraction = Fraction(0)
    #: the open may have been decided later than its event: it waited for the end of the other side
    late: bool = False
    slack: int = 0
    #: positions begun and turned
    decisions: int = 0

    def accept(self, position: dict[str, Any], seq: tuple[int, int]) -> bool:
        """An event was accepted. Returns whether it was a new decision of a known copy: a flip."""
        if seq <= self.seq or (position["kind"] == "order" and self.follower == "N"):
            return False
        lots, side = Decimal(position["lots"]), position["side"]
        known = self.side is not None and self.lots > 0
        same = (
            known
            and (position["ticket"] == self.ticket or position.get("replaces") == self.ticket)
            and side == self.side
        )
        flipped = known and side != self.side
        self.seq, self.ticket = seq, position["ticket"]
        if lots == 0:
            self.low = self.high = Fraction(0)
        elif not same:
            self.low = self.high = self.total = Fraction(self.setting.size(lots, side))
            self.late, self.slack = known or self.side is not None, 0
            self.decisions += 1
        else:
            self._change(lots, side)
        self.side, self.lots = side, lots
        return flipped

    def _change(self, lots: Decimal, side: str) -> None:
        if self.setting.lots_min > CENT:  # what is less is left as it is, or not opened
            self.slack += floor(self.setting.lots_min / CENT)
        decided_now = Fraction(self.setting.size(lots, side))
        if lots < self.lots:
            left = Fraction(lots) / Fraction(self.lots)
            self.low *= left
            if self.setting.rounds_only or self.slack == 0:
                self.high *= left  # else the increase may have been decided after it, or both as one
        elif lots > self.lots and (self.high > 0 or self.late):
            more = Fraction(self.setting.size(lots - self.lots, side))
            self.total += more
            self.high = self.high + more if self.setting.rounds_only else self.total
            self.low += more if self.setting.rounds_only and self.low > 0 else 0
            self.slack += 0 if self.setting.exact else 2
        if self.late:
            self.low, self.high = min(self.low, decided_now), max(self.high, decided_now)

    def end(self) -> None:
        """Flattened: until it flips, nothing of it is held."""
        self.low = self.high = self.total = Fraction(0)
        self.late = False

    def bounds(self) -> tuple[Decimal, Decimal]:
        """The least and the most that may be held. A reduction never takes the last of it."""
        least, most = (Decimal(floor(lots * 100)) / 100 for lots in (self.low, self.high))
        least, most = least - self.slack * CENT, most + self.slack * CENT
        one = self.setting.lots_min
        return (max(least, CENT) if self.low > 0 else Decimal(0)), (max(most, one) if self.high > 0 else Decimal(0))
