"""The order in which the executions of one account run. Pure bookkeeping: no clock, no input, no output.

Executions of one lane run one at a time, in the order of their numbers; lanes run side by side, as many as the account
bears, the most urgent first. An execution waits for the step named in `after_id` as long as an execution of that step
with a lower number is here: one that is unknown or ended holds nobody up, so nothing can wait for ever.

A close (or cancel) that names an opening step of its own lane overtakes it: what is unsent of the step is dropped, also
what arrives later.
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
#: overtaken steps remembered per account, for executions that arrive after their own close
REMEMBERED_STEPS = 5_000

Stage = Literal["queued", "running", "watching", "ended"]
StepName = tuple[str, str]


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """One attempt on its way through this agent. `deadline` is on boot time; times are on the database's clock."""

    execution: Execution
    received_at: datetime
    deadline: float
    #: it may have been sent before: look for it, never send it blindly
    unknown: bool = False
    stage: Stage = "queued"
    #: asked to go away: takes effect if the order is not sent yet
    dropped: str | None = None
    sent_at: datetime | None = None

    @property
    def key(self) -> tuple[ExecutionId, int]:
        return (self.execution.id, self.execution.attempt)

    @property
    def rank(self) -> tuple[int, ExecutionId, int]:
        # Looking for what may be out there comes first: it takes no slot and lanes wait for it.
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
        """Take works in any order. Returns those that are dropped because a close overtook them (they have ended)."""
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
            self._consider(lane)
        return dropped

    def startable(self) -> list[Work]:
        """What may start now, the most urgent first; each is `running` from here on and holds its lane (and a slot)."""
        starting: list[Work] = []
        while self._ready:
            _, work = self._ready[0]
            if not self._may_start(work):
                heapq.heappop(self._ready)
                self._consider(work.execution.lane)
                continue
            if not work.unknown:
                if self._free <= 0:
                    break
                self._free -= 1
            heapq.heappop(self._ready)
            lane = self._lanes[work.execution.lane]
            lane.queued.pop(0)
            lane.busy = work
            work.stage = "watching" if work.unknown else "running"
            starting.append(work)
        return starting

    def watch(self, work: Work) -> None:
        """A running work goes on as a mere look-out: it gives its slot back and keeps its lane."""
        if work.stage == "running":
            self._free += 1
            work.stage = "watching"

    def end(self, work: Work) -> None:
        """A started work has its outcome."""
        if work.stage == "running":
            self._free += 1
        lane = self._lanes[work.execution.lane]
        if lane.busy is work:
            lane.busy = None
        self._forget(work)

    def drop(self, work: Work) -> None:
        """A queued work goes away unsent."""
        self._lanes[work.execution.lane].queued.remove(work)
        self._forget(work)

    def _overtake(self, step: StepName) -> None:
        self._overtaken[step] = None
        self._overtaken.move_to_end(step)
        while len(self._overtaken) > REMEMBERED_STEPS:
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
        # Each leg that ends may be the one with the lowest number: whoever waits for the step looks again.
        for waiting in self._waiting.pop(execution.step_id, ()):
            self._consider(waiting)
        self._consider(execution.lane)

    def _consider(self, name: str) -> None:
        """If the head of this lane may start, put it on the heap; if it waits for a step, note that."""
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
