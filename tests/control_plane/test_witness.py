"""The agent keeps the highest number and the generation, sends them in calls, and notices a restored database."""

import logging
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from engine_harness import execution

from agent.broadcasts.handler_queue import Broadcast
from agent.control_plane import json_fields
from agent.control_plane.witness import BROADCAST_AHEAD, Witness
from agent.execution.engine import TradeCopyEngine
from agent.journal.journal import Journal
from agent.service.heartbeat import HeartbeatLoop
from agent.service.run import _dispatch

HOME = "https://one.example"


def answer_of(number: int, generation: int = 1) -> dict[str, object]:
    return {"last_execution_id": str(number), "generation": generation}


async def test_the_highest_number_ever_received_survives_a_restart(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    witness = Witness(journal, HOME)
    assert witness.claims() == {"highest_execution_id": None, "generation": None}
    for number in (5, 9, 7):
        witness.take_answer(answer_of(number), witness.claims())
    assert witness.claims() == {"highest_execution_id": "9", "generation": 1}
    await journal.close()
    journal = await Journal.open(tmp_path / "journal.sqlite")
    assert Witness(journal, HOME).claims() == {"highest_execution_id": "9", "generation": 1}
    await journal.close()


async def test_an_order_that_was_begun_counts_though_no_note_was_written(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    Witness(journal, HOME).take_answer(answer_of(5))
    await journal.begin(execution(12))
    await journal.close()
    journal = await Journal.open(tmp_path / "journal.sqlite")
    assert Witness(journal, HOME).highest == 12
    await journal.close()


async def test_numbers_of_another_database_prove_nothing(tmp_path: Path) -> None:
    """A machine that is enrolled in another project keeps its journal."""
    journal = await Journal.open(tmp_path / "journal.sqlite")
    Witness(journal, HOME).take_answer(answer_of(5))
    await journal.begin(execution(12))
    await journal.close()
    journal = await Journal.open(tmp_path / "journal.sqlite")
    assert Witness(journal, "https://other.example").claims() == {"highest_execution_id": None, "generation": None}
    assert Witness(journal, HOME).highest == 12
    await journal.close()


async def test_numbers_in_broadcasts_count_too(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    witness = Witness(journal, HOME)
    witness.take_answer(answer_of(5), witness.claims())
    witness.believable([execution(8), execution(6)])
    witness.believable([])
    assert witness.claims()["highest_execution_id"] == "5", "no call has carried it yet"
    witness.take_answer(answer_of(8), witness.claims())
    assert witness.claims()["highest_execution_id"] == "8"
    await journal.close()


async def test_a_number_is_kept_beside_a_higher_one_until_a_call_has_carried_it(tmp_path: Path) -> None:
    """After a restore the first answer may belong to a call that carries no number: the database never saw the proof
    then."""
    journal = await Journal.open(tmp_path / "journal.sqlite")
    witness = Witness(journal, HOME)
    witness.take_answer(answer_of(9), witness.claims())
    earlier = witness.claims()
    witness.take_answer(answer_of(12))  # sent by the database that is lost afterwards
    witness.take_answer(
        answer_of(1_000_020)
    )  # sent by the restored database, which skips a million numbers at its start
    witness.take_answer(answer_of(1_000_021), {"highest_execution_id": "7"})  # a retried call that was encoded earlier
    claimed = []
    for _ in range(5):
        said = witness.claims()
        claimed.append(said["highest_execution_id"])
        await journal.close()
        journal = await Journal.open(tmp_path / "journal.sqlite")
        witness = Witness(journal, HOME)
        assert witness.claims() == said, "it outlives a restart"
        witness.take_answer(answer_of(1_000_021), said)
    assert earlier["highest_execution_id"] == "9"
    assert claimed == ["9", "12", "1000020", "1000021", "1000021"]
    witness.take_answer(answer_of(2_000_022, 2))
    assert witness.claims() == {"highest_execution_id": "2000022", "generation": 2}, "who was a witness has been heard"
    await journal.close()


async def test_numbers_that_no_call_carries_do_not_accumulate(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    witness = Witness(journal, HOME)
    for number in range(1, 1_000):
        witness.take_answer(answer_of(number))
    assert witness.claims()["highest_execution_id"] == "1", "the oldest proof is the last to be given up"
    assert witness.highest == 999
    assert len(journal.notes[witness._name].split()) < 100
    await journal.close()


@pytest.mark.parametrize("absurd", [5 + BROADCAST_AHEAD + 1, 2**63 - 1, 2**63, 10**30])
async def test_a_broadcast_far_above_the_last_answer_is_ignored(
    tmp_path: Path, absurd: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With a number too far ahead the database would refuse every later heartbeat."""
    journal = await Journal.open(tmp_path / "journal.sqlite")
    witness = Witness(journal, HOME)
    witness.take_answer(answer_of(5), witness.claims())
    real = execution(8)
    assert witness.believable([real, execution(absurd)]) == [real]
    assert "broadcast_number_absurd" in caplog.text
    assert witness.highest == 8
    await journal.close()
    journal = await Journal.open(tmp_path / "journal.sqlite")
    assert Witness(journal, HOME).highest == 8
    await journal.close()


async def test_broadcasts_do_not_raise_the_number_step_by_step(tmp_path: Path) -> None:
    """Only an answer of the database raises the limit: neither their own numbers nor a restart do."""
    journal = await Journal.open(tmp_path / "journal.sqlite")
    witness = Witness(journal, HOME)
    witness.take_answer(answer_of(5), witness.claims())
    for number in (5 + BROADCAST_AHEAD, 5 + 2 * BROADCAST_AHEAD):
        witness.believable([execution(number)])
    assert witness.highest == 5 + BROADCAST_AHEAD
    await journal.close()
    journal = await Journal.open(tmp_path / "journal.sqlite")
    witness = Witness(journal, HOME)
    witness.believable([execution(5 + BROADCAST_AHEAD + 1)])
    assert witness.highest == 5 + BROADCAST_AHEAD
    witness.take_answer(answer_of(6 + BROADCAST_AHEAD), witness.claims())
    witness.believable([execution(5 + 2 * BROADCAST_AHEAD)])
    assert witness.highest == 5 + 2 * BROADCAST_AHEAD
    await journal.close()


async def test_an_order_of_an_ignored_broadcast_is_not_sent(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    witness = Witness(journal, HOME)
    witness.take_answer(answer_of(5), witness.claims())
    took: list[int] = []
    asked: list[bool] = []
    engine = SimpleNamespace(submit=lambda offered: took.extend(each.id for each in offered))
    heartbeats = SimpleNamespace(beat_now=lambda: asked.append(True))
    row = json_fields.loads(json_fields.dumps({**asdict(execution(1)), "id": "6"}))
    assert isinstance(row, dict)
    for numbers in (["6"], ["7", str(6 + BROADCAST_AHEAD)]):
        payload = {"executions": [row | {"id": number} for number in numbers]}
        message = Broadcast("executions", payload, datetime.now(UTC))
        _dispatch(message, cast(TradeCopyEngine, engine), cast(HeartbeatLoop, heartbeats), witness)
    assert (took, asked) == ([6, 7], [True]), "the next heartbeat brings it, if there is such an order"
    await journal.close()


async def test_a_new_generation_is_announced_once_and_the_first_one_is_not(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    begun: list[int | None] = []
    witness = Witness(journal, HOME)
    witness.on_new_generation = lambda: begun.append(witness.generation)
    witness.take_answer(answer_of(5), witness.claims())
    witness.take_answer(answer_of(1_000_005, 2), witness.claims())
    witness.take_answer(answer_of(1_000_006, 2), witness.claims())
    assert begun == [2]
    assert witness.claims() == {"highest_execution_id": "1000006", "generation": 2}
    await journal.close()
    journal = await Journal.open(tmp_path / "journal.sqlite")
    again = Witness(journal, HOME, lambda: begun.append(again.generation))
    again.take_answer(answer_of(3_000_000, 3))
    assert begun == [2, 3], "what happened while it was away is news, too"
    await journal.close()


async def test_an_answer_without_numbers_or_with_invalid_ones_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    witness = Witness(journal, HOME)
    witness.take_answer(answer_of(5), witness.claims())
    with caplog.at_level(logging.ERROR):
        absurd = {"last_execution_id": str(2**63), "generation": 1}
        for answer in (
            {},
            {"generation": 2},
            {"last_execution_id": "x", "generation": 2},
            {"last_execution_id": 1.5},
            absurd,
        ):
            witness.take_answer(answer)
    assert [record.message for record in caplog.records] == ["numbers_unreadable"] * 3
    assert witness.claims() == {"highest_execution_id": "5", "generation": 1}
    await journal.close()
