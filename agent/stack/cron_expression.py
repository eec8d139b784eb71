"""Cron schedules in pg_cron's syntax: five fields in UTC, `@` names, or `N seconds`."""

import calendar
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self

NAMED: Final = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
MONTHS: Final = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if name}
WEEKDAYS: Final = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
# the next 29 February is at most eight years away
SEARCH_DAYS: Final = 366 * 8


class ScheduleError(ValueError):
    """The text is not a valid schedule."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Either `interval` or the five sets of a cron line (`last_day`: `$` in the day field)."""

    interval: timedelta | None = None
    minutes: frozenset[int] = frozenset()
    hours: frozenset[int] = frozenset()
    days: frozenset[int] = frozenset()
    months: frozenset[int] = frozenset()
    weekdays: frozenset[int] = frozenset()
    last_day: bool = False
    any_day: bool = True
    any_weekday: bool = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a schedule. Raises ScheduleError."""
        seconds = re.fullmatch(r"\s*(\d{1,2})\s+seconds?\s*", text, re.IGNORECASE)
        if seconds is not None:
            count = int(seconds.group(1))
            if not 1 <= count <= 59:
                raise ScheduleError(f"{text!r}: the interval must be 1 to 59 seconds")
            return cls(interval=timedelta(seconds=count))
        fields = NAMED.get(text.strip().lower(), text).split()
        if len(fields) != 5:
            raise ScheduleError(f"{text!r} is neither five fields nor '[1-59] seconds'")
        minute, hour, day, month, weekday = fields
        return cls(
            minutes=_field(minute, 0, 59, {}),
            hours=_field(hour, 0, 23, {}),
            days=frozenset() if day == "$" else _field(day, 1, 31, {}),
            months=_field(month, 1, 12, MONTHS),
            weekdays=frozenset(number % 7 for number in _field(weekday, 0, 7, WEEKDAYS)),
            last_day=day == "$",
            any_day=day.startswith("*"),
            any_weekday=weekday.startswith("*"),
        )

    def next_after(self, moment: datetime) -> datetime:
        """The first moment after `moment` at which the job is due."""
        if self.interval is not None:
            return moment + self.interval
        at = moment.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        for _ in range(SEARCH_DAYS):
            if at.month in self.months and self._is_day(at):
                for hour in sorted(h for h in self.hours if h >= at.hour):
                    first = at.minute if hour == at.hour else 0
                    for minute in sorted(m for m in self.minutes if m >= first):
                        return at.replace(hour=hour, minute=minute)
            at = (at + timedelta(days=1)).replace(hour=0, minute=0)
        raise ScheduleError("the schedule matches no date")

    def _is_day(self, at: datetime) -> bool:
        day = at.day == calendar.monthrange(at.year, at.month)[1] if self.last_day else at.day in self.days
        weekday = (at.weekday() + 1) % 7 in self.weekdays
        # Vixie cron's rule: if both day fields are restricted, either may match.
        return day and weekday if self.any_day or self.any_weekday else day or weekday


def _field(text: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    values: set[int] = set()
    for part in text.split(","):
        span, _, step_text = part.partition("/")
        step = int(step_text) if step_text.isdigit() else 1 if not step_text else 0
        if step < 1:
            raise ScheduleError(f"{part!r}: the step must be a positive number")
        first, dash, last = span.partition("-")
        if span == "*":
            start, end = low, high
        else:
            start = _number(first, names)
            end = _number(last, names) if dash else (high if step_text else start)
        if not low <= start <= end <= high:
            raise ScheduleError(f"{part!r} is not within {low}-{high}")
        values.update(range(start, end + 1, step))
    return frozenset(values)


def _number(text: str, names: dict[str, int]) -> int:
    if text.isdigit():
        return int(text)
    if text.lower() in names:
        return names[text.lower()]
    raise ScheduleError(f"{text!r} is not a number")
