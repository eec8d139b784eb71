"""The order in which the executions of one account run. Pure bookkeeping: no clock, no input, no output.

Executions of one lane run one at a time, in the order of their numbers. Lanes run side by side, up to the account's
limit (`at_once`), the most urgent first. An execution waits for the step named in `after_id` while an execution of that
step with a lower number is in here. An execution that is unknown does not wait, and one that has ended blocks nothing,
so nothing waits for ever.

A close (or cancel) that names an opening step of its own lane overtakes it: executions of that step that are not sent
are dropped, and so are those that arrive later.
"""

import heapq
from bisect import insort
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from agent.model import Action, Execution, ExecutionId

OPENING: frozenset[Action] = frozenset({"open", "increase", "place"})
ENDING: frozenset[Action] = frozenset({"close", "cancel"})
#: overtaken steps kept per account, for executions that arrive after their own close
OVERTAKEN_STEPS_KEPT = 5_000

Stage = Literal["queued", "running", "resolving", "ended"]
StepName = tuple[str, str]


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """One attempt and its progress. Times are on the database's clock."""

    execution: Execution
    received_at: datetime
    #: boot time, in seconds, from which on it is not sent any more
    deadline: float
    #: it may have been sent before: it is looked up, never simply sent
    unknown: bool = False
    stage: Stage = "queued"
    #: the reason for which it is to be dropped if it is not sent yet
    dropped: str | None = None
    #: the journal has another order under its number, so this one is not written there
    unwritten: bool = False
    sent_at: datetime | None = None

    @property
    def key(self) -> tuple[ExecutionId, int]:
        return (self.execution.id, self.execution.attempt)

    @property
    def rank(self) -> tuple[int, ExecutionId, int]:
        # Lookups come first: they take no slot, and their lanes wait for them.
        return (0 if self.unknown else self.execution.priority, *self.key)

    def __lt__(self, other: "Work") -> bool:
        return self.key < other.key


@dataclass(slots=True, eq=False)
class _Lane:
    queued: list[Work] = field(default_factory=list)
    busy: Work | None = None


class Lanes:
    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._lanes: dict[str, _Lane] = {}
        self._steps: dict[str, set[Work]] = {}
        self._waiting: dict[str, set[str]] = {}
        self._ready: list[tuple[tuple[int, ExecutionId, int], Work]] = []
        self._overtaken: OrderedDict[StepName, None] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(works) for works in self._steps.values())

    def works(self) -> tuple[Work, ...]:
        return tuple(work for works in self._steps.values() for work in works)

    def add(self, works: Iterable[Work]) -> list[Work]:
        """Add works in any order. Returns those that a close has overtaken; they are dropped."""
        added = list(works)
        for work in added:
            execution = work.execution
            insort(self._lanes.setdefault(execution.lane, _Lane()).queued, work)
            self._steps.setdefault(execution.step_id, set()).add(work)
        for work in added:
            if work.execution.action in ENDING and work.execution.after_id is not None:
                self._overtake((work.execution.lane, work.execution.after_id))
        dropped = []
        for lane in {work.execution.lane for work in added}:
            for work in list(self._lanes[lane].queued):
                if self._is_overtaken(work):
                    self.drop(work)
                    dropped.append(work)
            self._update_lane(lane)
        return dropped

    def startable(self) -> list[Work]:
        """The works that may start now, the most urgent first. Each holds its lane from now on: `running` in a slot, or
        `resolving` without one if its outcome is to be looked up."""
        starting: list[Work] = []
        while self._ready:
            _, work = self._ready[0]
            if not self._may_start(work):
                heapq.heappop(self._ready)
                self._update_lane(work.execution.lane)
                continue
            if not work.unknown:
                if self._free <= 0:
                    break
                self._free -= 1
            heapq.heappop(self._ready)
            lane = self._lanes[work.execution.lane]
            lane.queued.pop(0)
            lane.busy = work
            work.stage = "resolving" if work.unknown else "running"
            starting.append(work)
        return starting

    def release_slot(self, work: Work) -> None:
        """A running work has no definitive answer and is looked up: it gives its slot back and keeps its lane."""
        if work.stage == "running":
            self._free += 1
            work.stage = "resolving"

    def end(self, work: Work) -> None:
        """A started work has its outcome."""
        if work.stage == "running":
            self._free += 1
        lane = self._lanes[work.execution.lane]
        if lane.busy is work:
            lane.busy = None
        self._forget(work)

    def drop(self, work: Work) -> None:
        """Remove a queued work that will not be sent."""
        self._lanes[work.execution.lane].queued.remove(work)
        self._forget(work)

    def _overtake(self, step: StepName) -> None:
        self._overtaken[step] = None
        self._overtaken.move_to_end(step)
        while len(self._overtaken) > OVERTAKEN_STEPS_KEPT:
            self._overtaken.popitem(last=False)
        for work in self._steps.get(step[1], ()):
            if work.execution.lane == step[0] and work.execution.action in OPENING and not work.unknown:
                work.dropped = "already_closed"

    def _is_overtaken(self, work: Work) -> bool:
        execution = work.execution
        return (
            execution.action in OPENING
            and not work.unknown
            and work.stage == "queued"
            and (execution.lane, execution.step_id) in self._overtaken
        )

    def _forget(self, work: Work) -> None:
        work.stage = "ended"
        execution = work.execution
        step = self._steps[execution.step_id]
        step.discard(work)
        if not step:
            del self._steps[execution.step_id]
        # The one that ended may have had the lowest number of its step: lanes that wait for the step are checked again.
        for waiting in self._waiting.pop(execution.step_id, ()):
            self._update_lane(waiting)
        self._update_lane(execution.lane)

    def _update_lane(self, name: str) -> None:
        """If the first work of this lane may start, put it on the heap; if it waits for a step, remember the lane."""
        lane = self._lanes.get(name)
        if lane is None or lane.busy is not None:
            return
        if not lane.queued:
            del self._lanes[name]
            return
        head = lane.queued[0]
        if self._blocked(head):
            self._waiting.setdefault(head.execution.after_id or "", set()).add(name)
        elif not any(work is head for _, work in self._ready[:1]):
            heapq.heappush(self._ready, (head.rank, head))

    def _may_start(self, work: Work) -> bool:
        lane = self._lanes.get(work.execution.lane)
        return (
            work.stage == "queued"
            and lane is not None
            and lane.busy is None
            and lane.queued[0] is work
            and not self._blocked(work)
        )

    def _blocked(self, work: Work) -> bool:
        after = work.execution.after_id
        if after is None or work.unknown:
            return False
        return any(other.key < work.key for other in self._steps.get(after, ()) if other is not work)
