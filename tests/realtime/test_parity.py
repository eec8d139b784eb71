"""The parity table: blank, failing and unknown cells count."""

from io import StringIO

import pytest
from rich.console import Console

from agent.stack.realtime.facts import CLIENTS, Fact
from agent.stack.realtime.parity import FACTS, Cell, Collector, report, unknown_facts

FACT = Fact("a.b", "something visible")
BOTH: list[Cell] = [("a.b", "python"), ("a.b", "js")]


def _missing(collector: Collector, fact: Fact = FACT) -> tuple[int, str]:
    output = StringIO()
    return report(collector, Console(file=output, width=120), [fact]), output.getvalue()


def test_a_fact_that_a_passing_test_shows_is_proven() -> None:
    assert _missing(Collector(shows={"t::test_it": BOTH}, passed={"t::test_it"}))[0] == 0


def test_a_fact_without_a_test_is_blank() -> None:
    missing, table = _missing(Collector(shows={"t::test_it": [("a.b", "python")]}, passed={"t::test_it"}))
    assert (missing, "BLANK" in table) == (1, True)


@pytest.mark.parametrize("passed", [{"t::test_it"}, set()], ids=["failed in its teardown", "never passed"])
def test_a_fact_whose_test_did_not_pass_is_not_proven(passed: set[str]) -> None:
    missing, table = _missing(Collector(shows={"t::test_it": BOTH}, passed=passed, failed={"t::test_it"}))
    assert (missing, "FAILED" in table) == (2, True)


def test_one_failing_test_outweighs_a_passing_one() -> None:
    shows = {"t::test_it": BOTH, "t::test_too": BOTH}
    assert _missing(Collector(shows=shows, passed={"t::test_it"}, failed={"t::test_too"}))[0] == 2


def test_a_fact_of_one_client_gives_a_reason_for_the_other() -> None:
    shown = Collector(shows={"t::test_it": [("a.b", "js")]}, passed={"t::test_it"})
    assert _missing(shown, Fact("a.b", "binary", "js", "no binary frames"))[0] == 0
    assert _missing(shown, Fact("a.b", "binary", "js"))[0] == 1


def test_tests_may_name_only_facts_of_the_list() -> None:
    assert unknown_facts(Collector(shows={"t::test_it": [("no.such", "js")]})) == ["no.such"]


def test_every_fact_is_listed_once() -> None:
    ids = [fact.id for fact in FACTS]
    assert len(ids) == len(set(ids))
    assert all(fact.only in {None, *CLIENTS} for fact in FACTS)


def test_pytest_takes_it_as_a_plugin_for_several_folders() -> None:
    assert hash(Collector()), "pytest puts plugins into sets"
