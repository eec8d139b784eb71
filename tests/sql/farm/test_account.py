"""Accounts: connecting, placing, state, credentials, removal."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from api_actors import EURUSD, Farm


def state(account: object, session: int | None = 1, **more: object) -> dict[str, Any]:
    return {"account_id": account, "epoch": 1, "session": session, "status": "connected"} | more


def test_a_user_connects_an_account_and_it_is_placed_at_once(farm: Farm) -> None:
    agent, user = farm.agent("a"), farm.user()
    answer = user.can(
        "connect_account", {"platform": "paper", "server": "Paper", "login": "1", "password": "p", "name": "Mine"}
    )
    assert answer["vps_id"] == str(agent.vps_id)
    (row,) = user.sees("select name, status, mode, currency, copy_state, session from public.trading_accounts")
    assert row == {
        "name": "Mine",
        "status": "pending",
        "mode": "hedging",
        "currency": "USD",
        "copy_state": "on",
        "session": 0,
    }


def test_without_a_vps_the_account_waits_and_is_placed_by_maintain(farm: Farm) -> None:
    user = farm.user()
    farm.offline_vps("paper")
    assert (
        user.can("connect_account", {"platform": "paper", "server": "Paper", "login": "1", "password": "p"})["vps_id"]
        is None
    )
    account = farm.row("select id from public.trading_accounts")["id"]
    user.cannot("assign_account", {"account_id": account}, "TC206")
    agent = farm.agent("a")
    farm.maintain()
    assert farm.assignment(account)["vps_id"] == agent.vps_id


@pytest.mark.parametrize(
    ("broken", "code", "named"),
    [
        ({"platform": "abacus"}, "TC001", "abacus"),
        ({"platform": None}, "TC001", "platform"),
        ({"server": ""}, "TC001", "server"),
        ({"login": 7}, "TC001", "login"),
        ({"login": "7" * 101}, "TC001", "login"),
        ({"platform": "mt5", "password": ""}, "TC203", "password"),
        ({"mode": "sideways"}, "TC001", "mode is sideways, but must be hedging or netting"),
        ({"mode": 7}, "TC001", "mode"),
        ({"currency": "dollars"}, "TC001", "currency is dollars, but must be 2 to 10 capital letters or digits"),
        ({"currency": "DOLLARSANDCENTS"}, "TC001", "currency is DOLLARSANDCENTS"),
        ({"settings": []}, "TC001", "settings"),
        ({"password": "x" * 1001}, "TC001", "password"),
        ({"password": 7}, "TC001", "password"),
        ({"password": ""}, "TC203", "password"),
        ({"password": None}, "TC203", "password"),
        ({"server": "Elsewhere"}, "TC220", "Elsewhere"),
        ({"passwort": "p"}, "TC301", "passwort"),
        ({"Password": "p"}, "TC301", "Password"),
    ],
)
def test_a_senseless_account_is_refused_and_nothing_is_stored(
    farm: Farm, broken: dict[str, object], code: str, named: str
) -> None:
    request: dict[str, object] = {"platform": "paper", "server": "Paper", "login": "7", "password": "p"}
    assert named in farm.user().cannot("connect_account", request | broken, code)
    assert (
        farm.row("select (select count(*) from public.trading_accounts) + (select count(*) from vault.secrets) as n")[
            "n"
        ]
        == 0
    )


def test_an_empty_password_changes_nothing_and_is_refused(farm: Farm) -> None:
    user = farm.user()
    account = farm.account(user)
    before = farm.row("select name, revision from public.trading_accounts")
    assert "password" in user.cannot("update_account", {"account_id": account, "password": "", "name": "New"}, "TC203")
    assert farm.row("select name, revision from public.trading_accounts") == before
    user.can("update_account", {"account_id": account, "password": None, "name": "New"})


def test_an_account_is_connected_once_whoever_tries(farm: Farm) -> None:
    first, second = farm.user(), farm.user()
    request = {"platform": "paper", "server": "Paper", "login": "7", "password": "p"}
    agent = farm.agent("a")
    account = first.can("connect_account", request)["account_id"]
    first.cannot("connect_account", request, "TC202")
    farm.session(agent, account)
    assert str(first.user_id) not in second.cannot("connect_account", request, "TC202")
    first.can("remove_account", {"account_id": account})
    second.can("connect_account", request)


def test_a_user_has_a_limit_of_accounts(farm: Farm) -> None:
    farm.operator().can("set_setting", {"key": "accounts_per_user_max", "value": 1})
    user = farm.user()
    farm.account(user)
    user.cannot("connect_account", {"platform": "paper", "server": "Paper", "login": "x", "password": "p"}, "TC204")


def test_the_least_loaded_vps_of_the_right_platform_takes_it(farm: Farm) -> None:
    small = farm.agent("small", capacity=1)
    large = farm.agent("large", capacity=10)
    other = farm.agent("other", platforms=["mt5"])
    user = farm.user()
    taken = [farm.assignment(farm.account(user))["vps_id"] for _ in range(3)]
    assert taken.count(small.vps_id) <= 1
    assert large.vps_id in taken
    assert farm.assignment(farm.account(user, platform="mt5"))["vps_id"] == other.vps_id


def test_a_vps_takes_no_more_than_its_capacity(farm: Farm) -> None:
    agent = farm.agent("a", capacity=2)
    user = farm.user()
    accounts = [farm.account(user) for _ in range(3)]
    assert (
        farm.row("select count(*) from public.account_vps_assignments where vps_id = %s", (agent.vps_id,))["count"] == 2
    )
    farm.service.cannot("assign_account", {"account_id": accounts[2], "vps_id": agent.vps_id}, "TC207")
    farm.agent("b")
    farm.maintain()
    assert farm.row("select count(*) from public.account_vps_assignments")["count"] == 3


def test_copy_partners_are_placed_side_by_side(farm: Farm) -> None:
    a, b = farm.agent("a"), farm.agent("b")
    user = farm.user()
    for agent in (a, b, b):
        farm.service.can("connect_account", {
            "platform": "paper", "server": "Paper", "login": str(uuid4()), "password": "p",
            "user_id": user.user_id, "vps_id": agent.vps_id,
        })  # fmt: skip
    master = farm.row("select account_id from public.account_vps_assignments where vps_id = %s", (a.vps_id,))[
        "account_id"
    ]
    follower = farm.row("select account_id from public.account_vps_assignments where vps_id = %s limit 1", (b.vps_id,))[
        "account_id"
    ]
    farm.rows(
        "insert into public.copiers (user_id, master_account_id, follower_account_id) values (%s, %s, %s)",
        (user.user_id, master, follower),
    )
    c = farm.agent("c")
    farm.rows("update public.vps_instances set capacity = 60 where id = %s", (b.vps_id,))
    farm.lose_lease(a)
    farm.maintain()
    assert farm.assignment(master)["vps_id"] == b.vps_id, f"beside its follower, not on the empty {c.vps_id}"


def test_an_account_on_a_healthy_vps_stays_unless_an_operator_names_another(farm: Farm) -> None:
    agent = farm.agent("a")
    user = farm.user()
    account = farm.account(user)
    other = farm.agent("b")
    assert user.can("assign_account", {"account_id": account})["epoch"] == 1
    user.cannot("assign_account", {"account_id": account, "vps_id": other.vps_id}, "TC107")
    farm.user().cannot("assign_account", {"account_id": account}, "TC106")
    moved = farm.operator().can("assign_account", {"account_id": account, "vps_id": other.vps_id})
    assert (moved["vps_id"], moved["epoch"]) == (str(other.vps_id), 2)
    assert farm.assignment(account)["vps_id"] != agent.vps_id


def test_a_draining_vps_gives_its_accounts_away_and_takes_none(farm: Farm) -> None:
    a = farm.agent("a")
    user, operator = farm.user(), farm.operator()
    account = farm.account(user)
    assert operator.can("drain_vps", {"vps_id": a.vps_id}) == {"vps_id": str(a.vps_id), "moved": 0, "left": 1}
    assert a.can("vps_heartbeat", {})["status"] == "draining"
    assert (
        user.can("connect_account", {"platform": "paper", "server": "Paper", "login": "late", "password": "p"})[
            "vps_id"
        ]
        is None
    )
    b = farm.agent("b")
    assert farm.maintain()["moved"] == 2
    assert farm.assignment(account)["vps_id"] == b.vps_id
    operator.can("drain_vps", {"vps_id": a.vps_id, "drain": False})
    assert farm.vps(a)["status"] == "online"


def test_a_retired_vps_is_refused_at_once_and_its_name_is_free(farm: Farm) -> None:
    a = farm.agent("a")
    account = farm.account(farm.user())
    b = farm.agent("b")
    farm.operator().can("retire_vps", {"vps_id": a.vps_id})
    a.cannot("vps_heartbeat", {}, "TC102")
    a.cannot("account_credentials", {"account_id": account, "epoch": 1}, "TC102")
    farm.service.cannot("agent_session", {"vps_id": a.vps_id, "secret": "x"}, "TC212")
    assert farm.assignment(account)["vps_id"] == b.vps_id
    farm.agent("a")
    farm.service.cannot("drain_vps", {"vps_id": a.vps_id}, "TC214")


def test_credentials_are_for_the_assigned_agent_only_and_audited(farm: Farm) -> None:
    a = farm.agent("a")
    user = farm.user()
    account = farm.account(user, password="correct horse")
    b = farm.agent("b")
    request = {"account_id": account, "epoch": 1}
    assert a.can("account_credentials", request)["password"] == "correct horse"
    b.cannot("account_credentials", request, "TC103")
    for somebody in (user, farm.operator(), farm.user()):
        somebody.cannot("account_credentials", request, "TC101")
    (entry,) = user.sees("select actor, actor_id, details from public.audit_log where action = 'credentials_read'")
    assert (entry["actor"], entry["actor_id"], entry["details"]["vps_id"]) == ("agent", a.user_id, str(a.vps_id))


def test_no_password_stands_anywhere_but_in_vault(farm: Farm) -> None:
    agent, user = farm.agent("a"), farm.user()
    account = farm.account(user, password="open-sesame-1")
    user.can("update_account", {"account_id": account, "password": "open-sesame-2", "name": "New name"})
    assert agent.can("account_credentials", {"account_id": account, "epoch": 1})["password"] == "open-sesame-2"
    for table in (
        "public.trading_accounts",
        "public.audit_log",
        "vault.secrets",
        "realtime.messages",
        "public.connection_health_logs",
    ):
        text = farm.owner.execute(f"select coalesce(string_agg(t::text, ''), '') as text from {table} t").fetchone()
        assert text is not None
        assert "open-sesame" not in text["text"], table


def test_a_removed_account_forgets_its_password_and_leaves_its_agent(farm: Farm) -> None:
    agent, user = farm.agent("a"), farm.user()
    account = farm.account(user)
    farm.clear_broadcasts()
    farm.user().cannot("remove_account", {"account_id": account}, "TC106")
    user.can("remove_account", {"account_id": account})
    assert farm.rows("select from vault.secrets") == []
    assert agent.can("vps_heartbeat", {})["assignments"] == []
    assert farm.sent(f"vps:{agent.vps_id}", "assignments")
    agent.cannot("account_credentials", {"account_id": account, "epoch": 1}, "TC103")
    user.cannot("remove_account", {"account_id": account}, "TC106")
    assert farm.maintain()["moved"] == 0


def test_an_account_in_a_copier_cannot_be_removed(farm: Farm) -> None:
    user = farm.user()
    master, follower = farm.account(user), farm.account(user)
    farm.rows(
        "insert into public.copiers (user_id, master_account_id, follower_account_id) values (%s, %s, %s)",
        (user.user_id, master, follower),
    )
    for account in (master, follower):
        user.cannot("remove_account", {"account_id": account}, "TC205")


def test_state_funds_and_symbols_are_written_down(farm: Farm) -> None:
    agent, user = farm.agent("a"), farm.user()
    account = farm.account(user)
    session = farm.session(agent, account)
    measured = datetime.now(UTC) - timedelta(seconds=2)
    agent.can("report_account_state", state(
        account, session, currency="EUR", leverage=100, mode="netting", balance="1000.5", equity="999.25", margin="10",
        free_margin="989.25", measured_at=measured.isoformat(),
        symbols=[EURUSD | {"bid": "1.1", "ask": "1.2", "quoted_at": measured.isoformat()}],
    ))  # fmt: skip
    (row,) = user.sees("select * from public.trading_accounts")
    assert (row["currency"], row["leverage"], row["mode"], str(row["equity"]), row["funds_at"]) == (
        "EUR",
        100,
        "netting",
        "999.25",
        measured,
    )
    (symbol,) = user.sees("select * from public.account_symbols")
    assert (symbol["name"], str(symbol["bid"]), str(symbol["lots_step"]), symbol["trade_mode"]) == (
        "EURUSD",
        "1.1",
        "0.01",
        "full",
    )
    assert len(user.sees("select * from public.account_snapshots")) == 1
    assert [
        r["status"] for r in user.sees("select status from public.connection_health_logs where account_id is not null")
    ] == ["connected"]


@pytest.mark.parametrize(
    ("said", "currency", "leverage"),
    [
        ({"leverage": 0}, "EUR", None), ({"leverage": 100_001}, "EUR", None),
        ({"leverage": 2_100_000_000}, "EUR", None),
        ({"leverage": -1}, "EUR", None), ({"leverage": 10**30}, "EUR", None), ({"leverage": "1:500"}, "EUR", None),
        ({"leverage": []}, "EUR", None), ({"leverage": 100_000}, "EUR", 100_000), ({"leverage": "30"}, "EUR", 30),
        ({"leverage": None}, "EUR", 100), ({}, "EUR", 100),
        ({"currency": "usd"}, "USD", 100), ({"currency": " uSd "}, "USD", 100), ({"currency": "US$"}, "EUR", 100),
        ({"currency": "€"}, "EUR", 100), ({"currency": "A" * 10}, "A" * 10, 100), ({"currency": "A" * 11}, "EUR", 100),
        ({"currency": "x" * 100_000}, "EUR", 100), ({"currency": ""}, "EUR", 100), ({"currency": "U"}, "EUR", 100),
        ({"currency": {"a": 1}}, "EUR", 100), ({"currency": 978}, "EUR", 100), ({"currency": None}, "EUR", 100),
    ],
)  # fmt: skip
def test_a_broker_with_an_odd_leverage_or_currency_is_heard_all_the_same(
    farm: Farm, said: dict[str, object], currency: str, leverage: int | None
) -> None:
    agent = farm.agent("a")
    account = farm.account(farm.user())
    session = farm.session(agent, account)
    agent.can("report_account_state", state(account, session, currency="EUR", leverage=100))
    figures = {"balance": "7", "equity": "8", "margin": "1", "free_margin": "7"}
    agent.can("report_account_state", state(account, session, symbols=[EURUSD]) | figures | said)
    row = farm.row("select currency, leverage, balance, equity from public.trading_accounts")
    assert (row["currency"], row["leverage"], row["balance"], row["equity"]) == (currency, leverage, 7, 8)
    assert farm.row("select name from public.account_symbols") == {"name": "EURUSD"}


def test_an_older_reading_never_overrules_a_newer_one(farm: Farm) -> None:
    agent = farm.agent("a")
    account = farm.account(farm.user())
    session = farm.session(agent, account)
    now = datetime.now(UTC)
    for seconds, figure in ((1, "200"), (5, "100")):
        at = (now - timedelta(seconds=seconds)).isoformat()
        agent.can("report_account_state", state(
            account, session, balance=figure, equity=figure, measured_at=at,
            symbols=[EURUSD | {"bid": figure, "ask": figure, "quoted_at": at}],
        ))  # fmt: skip
    assert str(farm.row("select equity from public.trading_accounts")["equity"]) == "200"
    assert str(farm.row("select bid from public.account_symbols")["bid"]) == "200"


def test_a_known_symbol_is_updated_by_its_name_and_quote_alone(farm: Farm) -> None:
    agent = farm.agent("a")
    account = farm.account(farm.user())
    session = farm.session(agent, account)
    agent.can("report_account_state", state(account, session, symbols=[EURUSD]))
    at = datetime.now(UTC).isoformat()
    agent.can(
        "report_account_state",
        state(account, session, symbols=[{"name": "EURUSD", "bid": "1.3", "ask": "1.4", "quoted_at": at}]),
    )
    row = farm.row("select * from public.account_symbols")
    assert (str(row["bid"]), str(row["contract_size"])) == ("1.3", "100000")


@pytest.mark.parametrize(
    "broken",
    [
        {"status": "fine"}, {"symbols": {}}, {"symbols": [{"name": "GBPUSD"}]},
        {"symbols": [EURUSD | {"lots_step": "NaN"}]},
        {"symbols": [EURUSD | {"lots_min": "-1"}]}, {"symbols": [EURUSD | {"tick_size": "small"}]}, {"balance": "NaN"},
        {"symbols": [EURUSD | {"bid": "Infinity", "ask": "1", "quoted_at": "2026-01-01T00:00:00Z"}]},
        {"mode": "sideways"}, {"measured_at": "soon"}, {"session": "x"}, {"epoch": None},
    ],
)  # fmt: skip
def test_senseless_states_are_refused_whole(farm: Farm, broken: dict[str, object]) -> None:
    agent = farm.agent("a")
    account = farm.account(farm.user())
    session = farm.session(agent, account)
    before = farm.rows("select * from public.trading_accounts")
    agent.cannot(
        "report_account_state", state(account, session) | broken, "TC103" if broken == {"epoch": None} else "TC001"
    )
    assert farm.rows("select * from public.trading_accounts") == before
    assert farm.rows("select * from public.account_symbols") == []


def test_heartbeats_carry_changes_of_state(farm: Farm) -> None:
    agent, user = farm.agent("a"), farm.user()
    account = farm.account(user)
    session = farm.session(agent, account)
    said = {"account_id": account, "session": session, "status": "degraded", "error": "no quotes"}
    for _ in range(3):
        agent.can("vps_heartbeat", {"accounts": [said]})
    agent.can("vps_heartbeat", {"accounts": [said | {"session": session + 1, "status": "halted"}]})
    assert farm.row("select status, status_reason from public.trading_accounts") == {
        "status": "degraded",
        "status_reason": "no quotes",
    }
    states = user.sees(
        "select status, previous_status from public.connection_health_logs where account_id is not null order by id"
    )
    assert [row["status"] for row in states] == ["connected", "degraded"]
