"""A key that a function does not know is refused by its name: a misspelt setting must not look as if it had been
taken."""

from typing import Any

import pytest
from api_actors import Farm

USERS: dict[str, dict[str, Any]] = {
    "connect_account": {"platform": "paper", "server": "Paper", "login": "1", "password": "p"},
    "update_account": {"account_id": None},
    "assign_account": {"account_id": None},
    "remove_account": {"account_id": None},
    "flatten_account": {"account_id": None},
    "pause_account": {"account_id": None, "state": "on"},
    "protection_room": {"account_id": None},
    "verdict": {},
    "my_session": {},
    "equity_curve": {"account_id": None},
    "search_servers": {"platform": "paper", "query": "b"},
    "request_server": {"platform": "paper", "name": "b"},
    "set_preferences": {"theme": "dark"},
    "set_flat_by": {"account_id": None, "weekday": 5, "time": "16:45", "time_zone": "UTC"},
    "remove_flat_by": {"account_id": None},
    "save_quiet_windows": {"windows": []},
    "import_quiet_windows": {"text": "2099-12-04"},
    "remove_quiet_windows": {"all": True},
    "set_quiet_times": {"account_id": None},
    "save_copier": {"master_account_id": None, "follower_account_id": None},
    "save_protection_rule": {"account_id": None, "kind": "daily_loss", "threshold": "5"},
    "copy_figures": {"time_zone": "UTC"},
    "mark_alert_seen": {"alert_id": 1},
    "mark_alerts_seen": {"alert_ids": [1]},
    "preview_copy": {"copier": {}, "master": {}, "follower": {}, "trade": {}},
}
OPERATORS: dict[str, dict[str, Any]] = {
    "drain_vps": {}, "retire_vps": {}, "set_trading": {"state": "monitor"},
    "set_setting": {"key": "lease_s", "value": 16},
    "create_enrollment_token": {}, "set_symbol_alias": {"name": "XAU", "instrument": "GOLD"}, "save_broker_server": {},
    "set_currency_unit": {"currency": "USDX", "counts_as": "USD"},
    "remove_broker_server": {}, "list_broker_servers": {},
}  # fmt: skip
OF_A_COPIER: dict[str, dict[str, Any]] = {
    "set_copier_mode": {"mode": "monitor"}, "remove_copier": {"mode": "preserve"}, "symbol_suggestions": {},
    "copier_drift": {},
    "resync_copier": {"items": [{"kind": "missing", "master_ticket": "1", "action": "copy"}]},
}  # fmt: skip
OF_A_RULE = ("remove_protection_rule", "reset_protection")


@pytest.mark.parametrize("function", USERS)
def test_users(farm: Farm, function: str) -> None:
    user = farm.user()
    account = farm.account(user)
    request = {key: account if value is None else value for key, value in USERS[function].items()}
    for unknown in ("Password", "surprise", "acount_id", ""):
        said = user.cannot(function, request | {unknown: "x"}, "TC301")
        assert f"{function}: unknown setting: {unknown}" in said
    assert farm.row("select count(*) from public.trading_accounts where removed_at is null")["count"] == 1


@pytest.mark.parametrize("function", OPERATORS)
def test_operators(farm: Farm, function: str) -> None:
    said = farm.operator().cannot(function, OPERATORS[function] | {"surprise": 1, "another": 2}, "TC301")
    assert f"{function}: unknown setting: another, surprise" in said


def test_what_concerns_a_copier_or_a_rule(farm: Farm) -> None:
    user = farm.user()
    master, follower = farm.account(user), farm.account(user)
    copier = user.can("save_copier", {"master_account_id": master, "follower_account_id": follower})["copier_id"]
    rule = user.can("save_protection_rule", {"account_id": master, "kind": "daily_loss", "threshold": "5"})["rule_id"]
    for function, request in OF_A_COPIER.items():
        assert "surprise" in user.cannot(function, {"copier_id": copier, "surprise": 1} | request, "TC301")
    for function in OF_A_RULE:
        assert "surprise" in user.cannot(function, {"rule_id": rule, "surprise": 1}, "TC301")


def test_the_list_above_is_whole(farm: Farm) -> None:
    """Whoever adds a function for users or operators that takes an object adds it above."""
    functions = farm.rows(
        "select p.proname as name from pg_proc p where p.pronamespace = 'public'::regnamespace"
        " and has_function_privilege('authenticated', p.oid, 'execute')"
    )
    agents = {
        "account_credentials",
        "open_session",
        "queue_trade_copy",
        "report_account_state",
        "report_executions",
        "vps_heartbeat",
    }
    assert {f["name"] for f in functions} - agents == {*USERS, *OPERATORS, *OF_A_COPIER, *OF_A_RULE}


def test_what_the_service_key_says_of_a_backup(farm: Farm) -> None:
    assert "surprise" in farm.service.cannot("note_restored", {"highest": "1", "surprise": 1}, "TC301")
    for broken in ("null", "[]", "5", '"x"', "true", "[{}]"):
        assert "note_restored" in farm.service.cannot("note_restored", broken, "TC001")
    assert farm.row("select generation from private.database_generation") == {"generation": 1}
