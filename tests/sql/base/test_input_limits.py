"""Every free-form input has a limit: at it, one over, and far beyond (base/json.sql)."""

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest
from api_actors import EURUSD, Actor, Farm, Json
from netting_harness import NettingWorld


def nested(depth: int) -> Json:
    """An object of so many levels."""
    document: Json = {}
    for _ in range(depth - 1):
        document = {"a": document}
    return document


def deep(depth: int) -> str:
    """The same as JSON, for Python's own encoder gives up before."""
    return '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1)


def with_settings(request: Json, settings: object) -> str:
    """The call's JSON; settings that are a text are JSON already."""
    return (
        json.dumps(request, default=str)[:-1]
        + f', "settings": {settings if isinstance(settings, str) else json.dumps(settings)}}}'
    )


def of_size(size: int) -> Json:
    """An object of so many bytes as the database writes it."""
    return {"a": "x" * (size - len(json.dumps({"a": ""})))}


def with_keys(count: int) -> Json:
    """So many keys over two levels."""
    return {"a": {f"k{n}": 1 for n in range(count - 2)}, "b": [1]}


GOOD: list[tuple[str, Json]] = [
    ("size", of_size(16_384)), ("depth", nested(6)), ("lists are levels", {"a": [[[[[]]]]]}), ("keys", with_keys(500)),
    ("a long list", {"a": [0] * 5000}), ("empty", {}),
]  # fmt: skip
TOO_MUCH: list[tuple[str, object, str]] = [
    ("size", of_size(16_385), "16384"),
    ("characters of several bytes", {"a": "ü" * 8_200}, "16384"), ("depth", nested(7), "6 levels"),
    ("lists are levels", {"a": [[[[[[]]]]]]}, "6 levels"), ("objects in lists", {"a": [[[[[{}]]]]]}, "6 levels"),
    ("keys", with_keys(501), "500 keys"), ("keys at the top", {f"k{n}": 1 for n in range(501)}, "500 keys"),
    ("absurdly deep", deep(1_021), "6 levels"), ("absurdly large", of_size(9_000_000), "16384"),
    ("absurdly many", {f"k{n}": n for n in range(200_000)}, "16384"),
]  # fmt: skip


@pytest.fixture
def user(farm: Farm) -> Actor:
    return farm.user()


@pytest.mark.parametrize("settings", [pytest.param(document, id=name) for name, document in GOOD])
def test_settings_at_their_limit_are_taken_and_told(farm: Farm, user: Actor, settings: Json) -> None:
    agent = farm.agent("a")
    account = farm.account(user, settings=settings)
    user.can("update_account", {"account_id": account, "settings": settings})
    assert agent.can("account_credentials", {"account_id": account, "epoch": 1})["settings"] == settings


@pytest.mark.parametrize(
    ("settings", "says"), [pytest.param(document, says, id=name) for name, document, says in TOO_MUCH]
)
def test_settings_over_a_limit_are_refused_by_name(farm: Farm, user: Actor, settings: object, says: str) -> None:
    account = farm.account(user, settings={"kept": True})
    for function, request in (
        ("update_account", {"account_id": account}),
        ("connect_account", {"platform": "paper", "server": "Paper", "login": "another", "password": "x"}),
    ):
        message = user.cannot(function, with_settings(request, settings), "TC303")
        assert "settings: " in message
        assert says in message
        assert len(message) < 500, "the refused settings are not repeated"
    assert farm.rows("select settings, revision from public.trading_accounts") == [
        {"settings": {"kept": True}, "revision": 1}
    ]


@pytest.mark.parametrize("broken", [[], "text", 5, True, [{}]])
def test_settings_that_are_no_object_are_refused_by_name(farm: Farm, user: Actor, broken: object) -> None:
    account = farm.account(user)
    assert "settings" in user.cannot("update_account", {"account_id": account, "settings": broken}, "TC001")


def test_settings_that_stand_in_the_table_all_the_same_reach_no_agent(farm: Farm, user: Actor) -> None:
    agent = farm.agent("a")
    account, other = farm.account(user), farm.account(farm.user())
    farm.rows("update public.trading_accounts set settings = %s::jsonb where id = %s", (deep(1_021), account))
    answer = agent.can("vps_heartbeat", {})
    assert {entry["account_id"] for entry in answer["assignments"]} == {str(account), str(other)}
    assert len(json.dumps(answer)) < 3_000
    assert "settings" in agent.cannot("account_credentials", {"account_id": account, "epoch": 1}, "TC303")
    agent.can("account_credentials", {"account_id": other, "epoch": 1})


#: function, field, what else it needs, longest value
TEXTS: list[tuple[str, str, Json, int]] = [
    ("connect_account", "name", {"platform": "paper", "server": "Paper", "login": "l", "password": "p"}, 100),
    ("connect_account", "login", {"platform": "paper", "server": "Paper", "password": "p"}, 100),
    ("connect_account", "password", {"platform": "paper", "server": "Paper", "login": "l"}, 1000),
    ("update_account", "name", {"account_id": "account"}, 100),
    ("update_account", "password", {"account_id": "account"}, 1000),
]


@pytest.mark.parametrize(("function", "field", "request_", "longest"), TEXTS, ids=[f"{t[0]}.{t[1]}" for t in TEXTS])
def test_texts_of_users_have_a_limit(
    farm: Farm, user: Actor, function: str, field: str, request_: Json, longest: int
) -> None:
    account = farm.account(user)
    request = {key: account if value == "account" else value for key, value in request_.items()}
    user.can(function, request | {field: "x" * longest})
    for too_much in ("x" * (longest + 1), "x" * 1_000_000, {"a": "object"}, ["list"], 5):
        assert field in user.cannot(function, request | {field: too_much}, "TC001")


#: function, field, what else it needs, code
NAMES: list[tuple[str, str, Json, str]] = [
    *((function, field, request, "TC001") for function, field, request, _ in TEXTS if field != "password"),
    ("connect_account", "server", {"platform": "paper", "login": "l", "password": "p"}, "TC001"),
    ("save_copier", "name", {"master_account_id": "account", "follower_account_id": "other"}, "TC303"),
    ("save_copier", "comment", {"master_account_id": "account", "follower_account_id": "other"}, "TC303"),
]


@pytest.mark.parametrize(("function", "field", "request_", "code"), NAMES, ids=[f"{t[0]}.{t[1]}" for t in NAMES])
def test_names_hold_no_control_characters(
    farm: Farm, user: Actor, function: str, field: str, request_: Json, code: str
) -> None:
    """They stand in alerts of operators, which such characters would make say something else."""
    known = {"account": farm.account(user), "other": farm.account(user)}
    request = {key: known.get(str(value), value) for key, value in request_.items()}
    for odd in "\x01\t\n\x1f\x7f\x85\x9f\u2028\u202a\u202e\u2066\u2069\ufeff":
        said = user.cannot(function, request | {field: f"a{odd}b"}, code)
        assert field in said
        assert f"a{odd}b" not in said
    if field != "server":
        user.can(function, request | {field: "Zoë · العربية 株 №1"})


def test_names_that_operators_give_hold_no_control_characters(farm: Farm, user: Actor) -> None:
    operator, server = farm.operator(), {"platform": "mt5", "server": "s"}
    for field in ("server", "title"):
        assert field in operator.cannot("save_broker_server", server | {field: "a\u202eb"}, "TC001")
    operator.cannot("create_enrollment_token", {"name": "a\u202eb"}, "TC001")
    enrolment = {
        "token": farm.token(), "name": "a", "platforms": ["paper"], "user_id": farm.user().user_id,
        "secret_hash": "0" * 64,
    }  # fmt: skip
    assert "region" in farm.service.cannot("enroll_vps", enrolment | {"region": "a\nb"}, "TC001")
    copier = {"master_account_id": farm.account(user), "follower_account_id": farm.account(user)}
    user.cannot("save_copier", copier | {"symbols": {"GOLD": "XAU\u202eUSD"}}, "TC302")


def test_names_of_servers_have_a_limit(farm: Farm, user: Actor) -> None:
    operator, longest = farm.operator(), "s" * 100
    farm.offline_vps("mt5")
    operator.can("save_broker_server", {"platform": "mt5", "server": longest, "title": "t" * 100})
    account = {"platform": "mt5", "login": "l", "password": "p"}
    user.can("connect_account", account | {"server": longest})
    for far in (101, 1_000_000):
        assert "server" in user.cannot("connect_account", account | {"server": "s" * far}, "TC001")
        assert "server" in operator.cannot(
            "save_broker_server", {"platform": "mt5", "server": "s" * far, "title": "t"}, "TC001"
        )
        assert "title" in operator.cannot(
            "save_broker_server", {"platform": "mt5", "server": "s", "title": "t" * far}, "TC001"
        )


def test_what_operators_type_has_a_limit(farm: Farm) -> None:
    operator = farm.operator()
    operator.can("set_trading", {"state": "monitor", "reason": "x" * 200})
    for far in (201, 1_000_000):
        assert "reason" in operator.cannot("set_trading", {"state": "monitor", "reason": "x" * far}, "TC001")
        assert len(operator.cannot("set_setting", {"key": "x" * far, "value": 1}, "TC200")) < 500
        assert len(operator.cannot("create_enrollment_token", {"name": "x" * far}, "TC001")) < 500
    operator.can("create_enrollment_token", {"name": "x" * 63})
    operator.cannot("create_enrollment_token", {"name": "x" * 64}, "TC001")


@pytest.mark.parametrize(("length", "code"), [(100, None), (101, "TC001"), (1_000_000, "TC001")])
def test_a_region_has_a_limit(farm: Farm, length: int, code: str | None) -> None:
    request = {
        "token": farm.token(), "name": "a", "platforms": ["paper"], "user_id": farm.user().user_id,
        "secret_hash": "0" * 64,
        "region": "r" * length,
    }  # fmt: skip
    if code is None:
        farm.service.can("enroll_vps", request)
    else:
        assert "region" in farm.service.cannot("enroll_vps", request, code)


def test_details_keep_what_is_short(farm: Farm, user: Actor) -> None:
    account = farm.account(user)
    user.can("update_account", {"account_id": account, "settings": of_size(16_000)})
    user.can("update_account", {"account_id": account, "settings": {"small": 1}, "name": "kept"})
    details = [
        row["details"] for row in farm.rows("select details from public.audit_log where action = 'updated' order by id")
    ]
    assert all(len(json.dumps(detail)) <= 2_048 for detail in details)
    assert details[-1]["name"][1] == "kept"
    assert details[-1]["settings"]["bytes"] > 16_000
    long: Any = {"a": "x" * 5_000, "b": "short"}
    for detail, kept in (
        (long, "short"),
        ({f"k{n}": "x" * 150 for n in range(100)}, None),
        ({"b": "y" * 2_000}, "y" * 2_000),
    ):
        farm.rows(
            "select private.raise_alert(%s, 'account', 'test', 'info', 'a test of details', %s::jsonb)",
            (account, json.dumps(detail)),
        )
        shown = farm.row("select detail from public.alerts where reason = 'test'")["detail"]
        assert len(json.dumps(shown)) <= 2_048
        assert shown.get("b") == kept


# -- what a broker says ------------------------------------------------------------------------------------


def told(account: UUID, session: int, symbols: list[Json], **more: object) -> Json:
    return {"account_id": account, "epoch": 1, "session": session, "status": "connected", "symbols": symbols} | more


def symbol(name: str, **more: object) -> Json:
    return EURUSD | {"name": name} | more


def names(farm: Farm) -> set[str]:
    return {row["name"] for row in farm.rows("select name from public.account_symbols")}


def test_symbols_beyond_the_limits_are_left_out_and_no_other(farm: Farm, user: Actor) -> None:
    agent, account = farm.agent("a"), farm.account(user)
    session = farm.session(agent, account)
    longest = "x" * 64
    for beyond in ("y" * 65, "y" * 500_000):
        agent.can(
            "report_account_state",
            told(account, session, [symbol(beyond), symbol(longest), symbol("OK"), symbol("OK")]),
        )
    agent.can("report_account_state", told(account, session, [symbol("ODD", profit_currency="z" * 11), symbol("EVEN")]))
    assert names(farm) == {longest, "OK", "EVEN"}
    alerts = user.sees("select reason, times from public.alerts")
    assert alerts == [{"reason": "symbols_left_out", "times": 3}]


def test_an_account_has_ten_thousand_symbols_and_no_more(farm: Farm, user: Actor) -> None:
    agent, account = farm.agent("a"), farm.account(user)
    session = farm.session(agent, account)
    for first in range(0, 9_999, 3_333):
        agent.can(
            "report_account_state", told(account, session, [symbol(f"S{n:05}") for n in range(first, first + 3_333)])
        )
    assert user.sees("select 1 from public.alerts") == []
    agent.can("report_account_state", told(account, session, [symbol("T1"), symbol("T2"), symbol("S00001", digits=3)]))
    counts = "select count(*) as n, count(*) filter (where name like 'T%%') as new from public.account_symbols"
    assert farm.row(counts) == {"n": 10_000, "new": 1}
    assert farm.row("select digits from public.account_symbols where name = 'S00001'") == {"digits": 3}
    assert farm.row("select detail from public.alerts") == {"detail": {"count": 1}}
    agent.can(
        "report_account_state",
        told(account, session, [{"name": "T2", "bid": "1", "ask": "2", "quoted_at": "2026-11-28T12:00:00Z"}]),
    )


def test_a_long_error_of_a_broker_is_cut(farm: Farm, user: Actor) -> None:
    agent, account = farm.agent("a"), farm.account(user)
    session = farm.session(agent, account)
    for length in (500, 501, 300_000):
        agent.can("report_account_state", told(account, session, [], status="degraded", error="e" * length))
        assert farm.row("select length(status_reason) as n from public.trading_accounts") == {"n": 500}
        agent.can(
            "vps_heartbeat",
            {"accounts": [{"account_id": account, "session": session, "status": "degraded", "error": "f" * length}]},
        )
        reason = "select left(status_reason, 1) as said, length(status_reason) as n from public.trading_accounts"
        assert farm.row(reason) == {"said": "f", "n": 500}


def test_what_an_agent_left_out_is_told_to_the_user(farm: Farm, user: Actor) -> None:
    agent, account = farm.agent("a"), farm.account(user)
    session = farm.session(agent, account)
    agent.can("report_account_state", told(account, session, [], symbols_left_out=3, positions_left_out=1))
    assert {row["reason"] for row in user.sees("select reason from public.alerts")} == {
        "symbols_left_out",
        "positions_left_out",
    }


@pytest.mark.parametrize("length", [200, 201, 300_000])
def test_a_trade_is_copied_and_closed_whatever_its_comment(world: NettingWorld, length: int) -> None:
    world.copy("M", "F")
    position = world.position(comment="c" * length, magic="7", extra={"deep": ["x" * length]})
    assert world.send("M", world.event("opened", position))["results"][0]["status"] == "accepted"
    (opened,) = world.executions("F")
    state = world.position(ticket="900", tag=str(opened["id"]), comment="d" * length)
    answer = world.report(opened, positions=[state], filled_lots="1.00", price="1.1", message="m" * length)
    assert answer["results"][0]["status"] == "accepted"
    answer = world.send("M", world.event("closed", position | {"lots": "0"}, close_reason="client"))
    assert answer["results"][0]["status"] == "accepted"
    assert [execution["action"] for execution in world.executions("F")][-1] == "close"
    rows = world.rows("select length(comment) as n from public.positions")
    assert {row["n"] for row in rows} == {200}
    assert world.rows("select 1 from public.trade_events where octet_length(payload::text) > 3000") == []
    assert world.rows("select 1 from public.trade_execution_queue where length(message) > 500") == []


def test_a_position_with_an_endless_symbol_does_not_spoil_a_snapshot(world: NettingWorld) -> None:
    world.copy("M", "F")
    good, odd = world.position(), world.position(symbol="S" * 65)
    at_limit = world.position(symbol="S" * 64)
    answer = world.send("M", world.event("snapshot", positions=[good, odd, at_limit, world.position(ticket="9" * 65)]))
    assert answer["results"][0]["status"] == "accepted"
    held = world.rows("select ticket from public.positions where lots > 0")
    assert {row["ticket"] for row in held} == {good["ticket"], at_limit["ticket"]}
    assert "TC401" in str(world.send("M", world.event("opened", odd))["results"])
    missing = {key: value for key, value in good.items() if key != "symbol"}
    assert world.send("M", world.event("snapshot", positions=[missing]))["results"][0]["status"] == "accepted"
    assert world.one("select count(*) from private.unread_entries where ticket = %s", good["ticket"]) == 1


# -- calls that are refused ----------------------------------------------------------------------------------


def refusal(world: NettingWorld, function: str, request: Json) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as refused:
        world.as_user(function, request)
    return refused.value


def length_of(error: psycopg.Error) -> int:
    return len(error.diag.message_primary or "") + len(error.diag.message_detail or "")


@pytest.mark.parametrize("odd", ["true", "yes", 1, [], {}, "x" * 1_000])
def test_dismissed_is_true_or_false(world: NettingWorld, odd: object) -> None:
    copier = world.copy("M", "F")
    error = refusal(world, "copier_drift", {"copier_id": copier, "dismissed": odd})
    assert (error.sqlstate, "dismissed" in str(error)) == ("TC001", True)
    for good in (True, False, None):
        assert world.as_user("copier_drift", {"copier_id": copier, "dismissed": good})["items"] == []


def test_a_refusal_does_not_repeat_what_was_sent(world: NettingWorld, farm: Farm) -> None:
    long = "x" * 200_000
    rule = {"account_id": world.accounts["F"], "kind": "daily_loss", "threshold": "5"}
    preview: Json = {
        "master": {}, "trade": {"side": "buy", "lots": "1", "price": "1.1"},
        "follower": {"symbol": EURUSD},
    }  # fmt: skip
    accounts = {"master_account_id": world.accounts["M"], "follower_account_id": world.accounts["F"]}
    for function, request in (
        ("save_copier", accounts | {long: 1}),
        ("save_copier", accounts | {f"{n}{long[:90]}": 1 for n in range(2_000)}),
        ("save_copier", accounts | {"reverse": long}),
        ("save_protection_rule", rule | {long: 1}),
        ("save_protection_rule", rule | {"enabled": long}),
        ("preview_copy", preview | {"copier": {long: 1}}),
        ("preview_copy", preview | {"copier": {"reverse": long}}),
        ("preview_copy", preview | {"rates": {long: "x"}}),
        ("preview_copy", preview | {"follower": {"symbol": EURUSD | {"digits": long}}}),
        ("preview_copy", preview | {"follower": {"symbol": EURUSD | {"quoted_at": long}}}),
    ):
        error = refusal(world, function, request)
        assert (error.sqlstate or "").startswith("TC"), (function, error)
        assert length_of(error) <= 1_000, function
    agent, account = farm.agent("c"), farm.account(farm.user())
    session = farm.session(agent, account)
    for function, request in (
        ("report_account_state", told(account, session, [symbol("A", digits=long)])),
        ("report_account_state", told(account, session, [symbol("A", trade_mode=long)])),
        ("vps_heartbeat", {"accounts": [{"account_id": long, "status": "connected"}]}),
    ):
        with pytest.raises(psycopg.Error) as refused:
            agent.can(function, request)
        assert refused.value.sqlstate == "TC001"
        assert length_of(refused.value) <= 1_000


def test_suggestions_are_asked_for_five_hundred_symbols_at_most(world: NettingWorld) -> None:
    ask = {"copier_id": world.copy("M", "F")}
    at_most = ["EURUSD"] * 499 + ["x" * 64]
    assert len(world.as_user("symbol_suggestions", ask | {"symbols": at_most})["symbols"]) == 1
    for symbols in (
        [*at_most, "EURUSD"],
        ["x"] * 20_000,
        ["EURUSD", "x" * 65],
        ["x" * 900_000],
        ["EURUSD", 5],
        [None],
        [["EURUSD"]],
    ):
        error = refusal(world, "symbol_suggestions", ask | {"symbols": symbols})
        assert (error.sqlstate, "symbols" in str(error)) == ("TC001", True)
        assert length_of(error) <= 500


@pytest.mark.parametrize("number", ["1." + "0" * 39, "1" * 41, "0" * 500_000 + "1"])
def test_a_number_has_forty_characters_at_most(world: NettingWorld, farm: Farm, number: str) -> None:
    copier = world.copy("M", "F", max_lots="1." + "0" * 38)
    error = refusal(world, "save_copier", {"id": copier, "max_lots": number})
    assert (error.sqlstate, "max_lots" in str(error)) == ("TC302", True)
    rule = {"account_id": world.accounts["F"], "kind": "daily_loss", "threshold": number}
    assert "threshold" in str(refusal(world, "save_protection_rule", rule))
    items = [{"kind": "missing", "master_ticket": "1", "action": "copy"}]
    far = {"copier_id": copier, "items": items, "max_distance_points": number}
    assert "max_distance_points" in str(refusal(world, "resync_copier", far))
    agent, account = farm.agent("c"), farm.account(farm.user())
    session = farm.session(agent, account)
    agent.can("report_account_state", told(account, session, [], balance="1." + "0" * 38, equity="1"))
    for field in ("balance", "equity", "margin", "free_margin"):
        figures = {"balance": "1", "equity": "1", "margin": "1", "free_margin": "1"} | {field: number}
        assert field in agent.cannot("report_account_state", told(account, session, []) | figures, "TC001")
    assert "cpu_percent" in agent.cannot("vps_heartbeat", {"cpu_percent": number}, "TC001")


def test_a_call_takes_a_thousand_entries_and_answers_in_their_order(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M")
    (opened,) = world.executions("F")
    events = [{"session": "x", "seq": n} for n in range(1_000)]
    answer = world.send("M", *events)["results"]
    assert [result["event_key"] for result in answer] == [f"x:{n}" for n in range(1_000)]
    report = {
        "account_id": world.accounts["F"], "execution_id": str(opened["id"]), "attempt": 1, "session": 1, "seq": 1,
        "outcome": "completed", "filled_lots": "1", "price": "1.1",
        "positions": [world.position(ticket="900", tag=str(opened["id"]))],
    }  # fmt: skip
    reports: list[Json] = [{"execution_id": str(n)} for n in range(1_000)]
    reports[500] = report
    answer = world.as_agent("F", "report_executions", {"reports": reports})["results"]
    assert [result["execution_id"] for result in answer] == [entry["execution_id"] for entry in reports]
    assert [n for n, result in enumerate(answer) if result["status"] == "accepted"] == [500]
    with pytest.raises(psycopg.Error, match="1001 events") as refused:
        world.send("M", *events, {})
    assert refused.value.sqlstate == "TC002"
    with pytest.raises(psycopg.Error, match="1001 reports") as refused:
        world.as_agent("F", "report_executions", {"reports": [*reports, {}]})
    assert refused.value.sqlstate == "TC002"


@pytest.mark.parametrize(
    "odd", [{"a": 1}, [1], [], {}, {"a": ["x" * 5_000]}], ids=["object", "list", "[]", "{}", "long"]
)
def test_what_is_no_text_in_a_trade_is_left_out_and_closes_are_taken(world: NettingWorld, odd: object) -> None:
    world.copy("M", "F")
    fields = {"magic": odd, "comment": odd, "replaces": odd}
    position = world.position()
    assert world.send("M", world.event("opened", position | fields))["results"][0]["status"] == "accepted"
    (opened,) = world.executions("F")
    state = world.position(ticket="900", tag=str(opened["id"])) | fields
    answer = world.report(opened, positions=[state], filled_lots="1.00", price="1.1")
    assert answer["results"][0]["status"] == "accepted"
    listed = world.event("snapshot", positions=[position | fields])
    assert world.send("M", listed)["results"][0]["status"] == "accepted"
    closed = world.event("closed", position | fields | {"lots": "0"}, close_reason=odd)
    assert world.send("M", closed)["results"][0]["status"] == "accepted"
    assert [execution["action"] for execution in world.executions("F")] == ["open", "close"]
    rows = world.rows("select magic, comment, close_reason from public.positions order by ticket = '900'")
    assert [(row["magic"], row["comment"]) for row in rows] == [(None, None)] * 2
    assert rows[0]["close_reason"] == "client"  # what a close without a reason counts as


@pytest.mark.parametrize("length", [65, 100_000])
def test_a_ticket_that_is_too_long_to_be_replaced_is_none(world: NettingWorld, length: int) -> None:
    world.copy("M", "F")
    position = world.opened("M")
    closed = world.event("closed", position | {"lots": "0", "replaces": "9" * length})
    assert world.send("M", closed)["results"][0]["status"] == "accepted"
    assert world.rows("select 1 from public.trade_events where payload #>> '{position,replaces}' is not null") == []
    opened = world.executions("F")[0]
    state = world.position(ticket="900", tag=str(opened["id"]), replaces="9" * length)
    answer = world.report(opened, positions=[state], filled_lots="1.00", price="1.1")
    assert answer["results"][0]["status"] == "accepted"
