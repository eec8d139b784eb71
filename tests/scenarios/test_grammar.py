from decimal import Decimal
from pathlib import Path

import pytest

from agent.scenario.grammar import parse_scenario, read_scenario
from agent.scenario.node import GrammarError
from agent.scenario.script import ChangeCopier, Close, Copier, ExpectBook, Modify, MoveMoney, Open, Scenario

HEAD = """name: x
accounts:
  M: {currency: USD, balance: 10000}
  F: {vps: A}
copiers:
  - {master: M, follower: F, sizing_mode: multiplier, sizing_value: 0.1, reverse: true, comment: "1", max_lots: null}
steps:
"""


def parse(*steps: str, head: str = HEAD) -> Scenario:
    return parse_scenario("s.yaml", head + "".join(f"  - {step}\n" for step in steps))


def test_a_broker_may_demand_the_order_of_closes_and_forbid_hedging() -> None:
    head = HEAD.replace("F: {vps: A}", "F: {fifo: true, hedging_allowed: false}")
    broker = parse("balance: {F: -600.10}", head=head).accounts["F"].broker
    assert broker is not None
    assert (broker.fifo, broker.no_hedging) == (True, True)
    assert parse("balance: {F: 1}").accounts["F"].broker is None
    twice = HEAD.replace("F: {vps: A}", "F: {hedging_allowed: true, broker: {no_hedging: true}}")
    with pytest.raises(GrammarError, match="say the same"):
        parse("balance: {F: 1}", head=twice)


def test_a_broker_may_have_no_quotes_at_first() -> None:
    head = HEAD.replace("F: {vps: A}", "F: {first_quote: none}")
    accounts = parse("balance: {F: 1}", head=head).accounts
    assert (accounts["M"].quoted_at_first, accounts["F"].quoted_at_first) == (True, False)
    with pytest.raises(GrammarError, match="first_quote"):
        parse("balance: {F: 1}", head=HEAD.replace("F: {vps: A}", "F: {first_quote: soon}"))


def test_money_is_moved_by_exact_amounts() -> None:
    [step] = parse("balance: {F: -600.10, M: 5}").steps
    assert isinstance(step, MoveMoney)
    assert step.amounts == {"F": Decimal("-600.10"), "M": Decimal(5)}


def test_numbers_are_exact() -> None:
    [step] = parse("M: {open: buy, symbol: EURUSD, lots: 0.30000000000000000001}").steps
    assert isinstance(step, Open)
    assert step.lots == Decimal("0.30000000000000000001")


def test_columns_of_a_copier_keep_their_kind() -> None:
    [copier] = parse("price: {EURUSD: [1, 2]}").copiers
    assert isinstance(copier, Copier)
    assert dict(copier.columns) == {
        "sizing_mode": "multiplier", "sizing_value": Decimal("0.1"), "reverse": True, "comment": Decimal(1),
        "max_lots": None,
    }  # fmt: skip


def test_a_column_may_be_a_list() -> None:
    [step] = parse("copier: {set: 0, symbols_only: [EURUSD, 'XAU*'], weekdays: [1, 5], magic_only: []}").steps
    assert isinstance(step, ChangeCopier)
    assert dict(step.columns) == {"symbols_only": ("EURUSD", "XAU*"), "weekdays": ("1", "5"), "magic_only": ()}


def test_a_level_of_zero_and_one_left_out_differ() -> None:
    steps = parse("M: {open: buy, symbol: EURUSD, lots: 1, as: p}", "M: {modify: p, sl: 0}").steps
    assert isinstance(steps[1], Modify)
    assert (steps[1].sl, steps[1].tp) == (Decimal(0), None)


def test_a_user_may_close_by_symbol() -> None:
    [step] = parse("F: {close: EURUSD}").steps
    assert isinstance(step, Close)
    assert step.target == "EURUSD"


def test_keys_left_out_of_an_expectation_are_not_compared() -> None:
    [step] = parse("expect: {F: [{symbol: EURUSD}]}").steps
    assert isinstance(step, ExpectBook)
    assert dict(step.books["F"][0].keys) == {"symbol": "EURUSD"}


def test_a_suffixed_symbol_takes_the_place_of_the_plain_one() -> None:
    head = HEAD.replace("copiers:", "symbols:\n  F.EURUSD.m: {digits: 5}\ncopiers:")
    with pytest.raises(GrammarError, match="F does not offer the symbol 'EURUSD'"):
        parse("F: {open: buy, symbol: EURUSD, lots: 1}", head=head)
    assert parse("F: {open: buy, symbol: EURUSD.m, lots: 1}", head=head).steps


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("M: {open: long, symbol: EURUSD, lots: 1}", "one of buy, sell"),
        ("M: {open: buy, symbol: EURUSD, lots: 1e3}", "must be a decimal number"),
        ("M: {open: buy, symbol: EURUSD, lots: .inf}", "must be a decimal number"),
        ("M: {open: buy, symbol: EURUSD, lots: 0}", "more than 0"),
        ("M: {open: buy, symbol: EURUSD}", "needs lots"),
        ("M: {open: buy, symbol: DOGE, lots: 1}", "does not offer the symbol"),
        ("M: {open: buy, symbol: EURUSD, lots: 1, close: p}", "must contain one of"),
        ("M: {close: p}", "has no 'p'"),
        ("M: {modify: EURUSD}", "needs sl:, tp: or price:"),
        ("M: {cancel: EURUSD, lots: 1}", "has no key 'lots'"),
        ("X: {close: EURUSD}", "has no key 'X'"),
        ("{M: {close: EURUSD}, F: {close: EURUSD}}", "one key"),
        ("price: {EURUSD: [1.2, 1.1]}", "below its bid"),
        ("price: {EURUSD: 1.2}", "must be a list"),
        ("protection: {account: X, kind: daily_loss, threshold: 5}", "must be one of"),
        ("protection: {account: F, kind: daily_loss}", "protection needs threshold"),
        ("protection: {account: F, kind: daily_loss, threshold: 5, limit: 1}", "has no key 'limit'"),
        ("balance: {}", "needs an account and an amount"),
        ("balance: {F: 0}", "more than 0 for a deposit"),
        ("balance: {X: 5}", "has no key 'X'"),
        ("balance: {F: some}", "must be a decimal number"),
        ("price: {NONE: [1, 2]}", "no account offers"),
        ("copier: {set: 1, mode: off}", "there is no copier 1"),
        ("copier: {set: 0}", "at least one setting"),
        ("copier: {remove: 1, mode: close_now}", "there is no copier 1"),
        ("copier: {remove: 0}", "remove needs mode:"),
        ("copier: {remove: 0, mode: at_once}", "must be one of preserve"),
        ("copier: {remove: 0, mode: close_now, sides: buy}", "has no key 'sides'"),
        ("trading: halt", "must be one of on"),
        ("resync: {copier: 0}", "resync needs action:"),
        ("resync: {copier: 2, action: copy}", "there is no copier 2"),
        ("resync: {copier: 0, action: adopt}", "must be one of copy"),
        ("expect_drift: {too_old: 1}", "expect_drift needs copier:"),
        ("fault: {account: F, kind: explode}", "must be one of reject"),
        ("fault: {account: F, snapshot: empty, kind: reject}", "has no kind"),
        ("drop: {broadcasts: soon}", "a time such as 3s"),
        ("drop: {agent: nobody}", "must be one of"),
        ("drop: {vps: Z}", "must be one of A, F, M"),
        ("replay: {events: 0}", "at least 1"),
        ("expect: {F: {symbol: EURUSD}}", "must be a list"),
        ("expect: {F: [{lot: 1}]}", "has no key 'lot'"),
        ("expect_reasons: {F: {below_min: -1}}", "whole number"),
        ("expect_sent: {F: 1.5}", "whole number"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line(step: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message) as caught:
        parse("price: {EURUSD: [1, 2]}", step)
    assert caught.value.code == "TC640"
    assert "s.yaml:9:" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("steps: []\n", "needs accounts"),
        ("accounts: {M: {}}\n", "needs steps"),
        ("accounts: {M: {}}\naccounts: {}\nsteps: []\n", "s.yaml:2: 'accounts' appears twice"),
        ("accounts: {expect: {}}\nsteps: []\n", "name of a step"),
        ("accounts: {M: {platform: mt9}}\nsteps: []\n", "one of paper"),
        ("accounts: {M: {}\nsteps: [\n", "not YAML"),
        ("accounts: {M: {}}\nsymbols: {G.EURUSD: {}}\nsteps: []\n", "s.yaml:2: there is no account 'G'"),
        (
            "accounts: {M: {}}\nsymbols: {EURUSD: {lots_min: 1, lots_max: 0.5}}\nsteps: []\n",
            "s.yaml:2: lots_min of EURUSD is 1, above",
        ),
        ("accounts: {M: {}}\nsteps: [{replay: {events: 1}}]\n", "s.yaml:2: replay without account"),
        ("accounts: {M: {}}\ncopiers: [{master: M, follower: M}]\nsteps: []\n", "another account"),
        ("- a\n", "must be a mapping"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused(content: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        parse_scenario("s.yaml", content)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GrammarError, match="cannot be read"):
        read_scenario(tmp_path / "none.yaml")
