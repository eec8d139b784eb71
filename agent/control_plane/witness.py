"""`Witness`: the highest execution number and the generation that the database has sent to this agent.

A database restored from a backup does not know which execution numbers it gave out after the backup. Therefore every
answer names the last number given out, and every agent keeps the highest one on its disk and sends it with each
heartbeat, event and report call (docs/protocol.md, Generations). A new generation in an answer means that the database
was restored; the agent then starts its sessions anew.

Every answer names a number, but not every call carries one. The first answer after a restore may belong to a call
without one; its number, beyond the jump, does not show that the database knows ours. So a number is kept beside a
higher one until the database has answered a call that carried it.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Final

from agent.control_plane.json_fields import Json, WireError, optional_integer
from agent.journal.journal import Journal
from agent.model import Offered

log = logging.getLogger(__name__)

#: begins the name of the journal's note; stored on disk, so it must not change
NOTE: Final = "told by "
#: how far a broadcast's execution number may be above that of the last answer; the database refuses agents that claim
#: more (TC150)
BROADCAST_AHEAD: Final = 10_000_000
#: most numbers kept until a call has carried them; more accumulate only while no such call is answered
UNCONFIRMED_MAX: Final = 50


class Witness:
    """`on_new_generation` is called when an answer shows that the database was restored since the last answer."""

    def __init__(self, journal: Journal, project: str, on_new_generation: Callable[[], None] = lambda: None) -> None:
        """`project`: the address of the Supabase project. Numbers of another project mean nothing here."""
        self._journal = journal
        self._name = NOTE + project
        self.on_new_generation = on_new_generation
        self.highest: int | None = None
        self.generation: int | None = None
        #: lower numbers that no answered call has carried yet; ascending
        self._unconfirmed: list[int] = []
        #: the number in the last answer of this run
        self._answered: int | None = None
        noted = journal.notes.get(self._name)
        if noted is not None:
            with contextlib.suppress(ValueError):  # a damaged note: the journal's orders below still give a number
                self.highest, self.generation, *self._unconfirmed = map(int, noted.split())
        if noted is not None or not any(name.startswith(NOTE) for name in journal.notes):
            # an order begun after the last note was written, or by a version without notes
            self._learn(journal.highest_begun or 0)

    def claims(self) -> dict[str, object]:
        """For every heartbeat, event and report call."""
        number = self._claim()
        return {"highest_execution_id": None if number is None else str(number), "generation": self.generation}

    def _claim(self) -> int | None:
        return self._unconfirmed[0] if self._unconfirmed else self.highest

    def take_answer(self, answer: Json, request: Json | None = None) -> None:
        """Process the answer to `request`. An answer without a readable number and generation is ignored."""
        try:
            number, generation = optional_integer(answer, "last_execution_id"), optional_integer(answer, "generation")
            claimed = optional_integer(request or {}, "highest_execution_id")
        except WireError as error:
            log.error("numbers_unreadable", extra={"error": str(error)})
            return
        if generation is None or number is None:
            return
        self._answered = number
        known, before, self.generation = (self.highest, *self._unconfirmed), self.generation, generation
        if generation != before:
            self._unconfirmed.clear()  # the restored database has already taken the witnesses' numbers into account
            claimed = self.highest
        self._unconfirmed = [each for each in self._unconfirmed if claimed is None or each > claimed]
        self._learn(number, claimed)
        if (self.highest, *self._unconfirmed) != known or generation != before:
            self._note()
        if before is not None and generation != before:
            log.critical(
                "database_went_back",
                extra={"generation": generation, "before": before, "fix": "see docs/operations.md"},
            )
            self.on_new_generation()

    def believable(self, executions: Iterable[Offered]) -> list[Offered]:
        """The executions of a broadcast whose numbers are plausible; the highest one is noted. An absurd number must be
        neither noted nor begun, because the database would refuse every later heartbeat that carries it."""
        if self._answered is None:
            return list(executions)
        believed: list[Offered] = []
        for execution in executions:
            if execution.id <= self._answered + BROADCAST_AHEAD:
                believed.append(execution)
            else:
                log.error("broadcast_number_absurd", extra={"execution_id": execution.id, "answered": self._answered})
        number = max((execution.id for execution in believed), default=0)
        if number > (self.highest or 0):
            self._learn(number)
            self._note()
        return believed

    def _learn(self, number: int, claimed: int | None = None) -> None:
        """The database sent `number`, in answer to a call that carried `claimed` (None: it carried none)."""
        if number <= (self.highest or 0):
            return
        if self.highest is not None and (claimed is None or claimed < self.highest):
            self._unconfirmed.append(self.highest)
            del self._unconfirmed[1:-UNCONFIRMED_MAX]
        self.highest = number

    def _note(self) -> None:
        self._journal.note(
            self._name, " ".join(str(number) for number in (self.highest, self.generation, *self._unconfirmed))
        )
