"""The order in which executions of one account run."""

from collections.abc import Iterable

from engine_harness import execution
from hypothesis import given
from hypothesis import strategies as st

from agent.execution.lanes import Lanes, Work
from agent.model import Execution


def work(number: int, action: str = "open", **changes: object) -> Work:
    unknown = bool(changes.pop("unknown", False))
    made: Execution = execution(number, action, **changes)  # type: ignore[arg-type]
    return Work(execution=made, received_at=made.queued_at, deadline=0.0, unknown=unknown)


def ids(works: Iterable[Work]) -> list[int]:
    return [each.execution.id for each in works]


def test_a_lane_runs_in_the_order_of_numbers_even_if_they_arrive_in_reverse() -> None:
    lanes = Lanes(8)
    works = [work(number, lane="a") for number in (3, 2, 1)]
    lanes.add(works)
    order = []
    while started := lanes.startable():
        order += ids(started)
        assert len(started) == 1
        lanes.end(started[0])
    assert order == [1, 2, 3]


def test_lanes_run_side_by_side_up_to_the_limit_of_the_account() -> None:
    lanes = Lanes(2)
    lanes.add([work(number) for number in (1, 2, 3)])
    started = lanes.startable()
    assert ids(started) == [1, 2]
    lanes.end(started[0])
    assert ids(lanes.startable()) == [3]


def test_closes_go_before_reductions_before_changes_before_opens() -> None:
    lanes = Lanes(1)
    lanes.add([work(1, "open"), work(2, "modify"), work(3, "reduce"), work(4, "close")])
    order = []
    while started := lanes.startable():
        order += ids(started)
        lanes.end(started[0])
    assert order == [4, 3, 2, 1]


def test_an_execution_waits_for_the_step_it_names_in_another_lane() -> None:
    lanes = Lanes(8)
    lanes.add([work(1, "close", lane="a", ticket="1"), work(2, "open", lane="b", after_id="1")])
    started = lanes.startable()
    assert ids(started) == [1]
    lanes.end(started[0])
    assert ids(lanes.startable()) == [2]


def test_an_unknown_or_ended_step_holds_nobody_up() -> None:
    lanes = Lanes(8)
    lanes.add([work(2, "open", after_id="1")])
    assert ids(lanes.startable()) == [2]


def test_a_step_of_several_executions_ends_with_the_last_of_them() -> None:
    lanes = Lanes(8)
    lanes.add(
        [
            work(1, "close", lane="a", step_id="1"),
            work(2, "close", lane="b", step_id="1"),
            work(3, after_id="1", lane="c"),
        ]
    )
    first, second = lanes.startable()
    lanes.end(first)
    assert lanes.startable() == []
    lanes.end(second)
    assert ids(lanes.startable()) == [3]


def test_a_close_overtakes_the_unsent_open_that_it_names() -> None:
    lanes = Lanes(1)
    lanes.add([work(9, lane="other")])
    assert ids(lanes.startable()) == [9]
    lanes.add([work(10, lane="a")])
    dropped = lanes.add([work(11, "close", lane="a", after_id="10")])
    assert ids(dropped) == [10]


def test_an_open_that_arrives_after_its_own_close_is_dropped() -> None:
    lanes = Lanes(1)
    lanes.add([work(11, "close", lane="a", after_id="10")])
    close = lanes.startable()
    assert ids(close) == [11]
    lanes.end(close[0])
    assert ids(lanes.add([work(10, lane="a")])) == [10]


def test_an_open_with_an_unknown_outcome_is_looked_up_even_if_its_close_came_first() -> None:
    lanes = Lanes(1)
    assert lanes.add([work(10, lane="a", unknown=True), work(11, "close", lane="a", after_id="10")]) == []
    assert ids(lanes.startable()) == [10]


def test_a_close_of_another_lane_overtakes_nothing() -> None:
    lanes = Lanes(1)
    assert lanes.add([work(10, lane="a"), work(11, "close", lane="b", after_id="10")]) == []


def test_a_lookup_takes_no_slot_but_keeps_its_lane() -> None:
    lanes = Lanes(1)
    lanes.add([work(1, lane="a", unknown=True), work(2, lane="a"), work(3, lane="b")])
    started = lanes.startable()
    assert ids(started) == [1, 3]
    lanes.release_slot(started[1])
    assert lanes.startable() == []
    lanes.end(started[0])
    assert ids(lanes.startable()) == [2]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.sampled_from(["open", "close", "modify", "reduce"]), st.integers(0, 12), st.booleans()
        ),
        max_size=14,
    ),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_everything_ends_exactly_once_whatever_names_whatever(
    specs: list[tuple[int, str, int, bool]], at_once: int, random: object
) -> None:
    works = [
        work(number, action, lane=str(lane), after_id=str(after) if after else None, unknown=unknown)
        for number, (lane, action, after, unknown) in enumerate(specs, start=1)
    ]
    shuffled = list(works)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    lanes = Lanes(at_once)
    ended: list[Work] = []
    running: list[Work] = []
    while shuffled or running or len(lanes):
        if shuffled:
            ended += lanes.add([shuffled.pop()])
        running += lanes.startable()
        assert sum(each.stage == "running" for each in running) <= at_once
        busy = [each.execution.lane for each in running]
        assert len(busy) == len(set(busy))
        assert running or shuffled or not len(lanes), "nothing can move any more"
        if running:
            done = running.pop(0)
            lanes.end(done)
            ended.append(done)
    assert sorted(ids(ended)) == [each.execution.id for each in works]
    assert len(lanes) == 0
