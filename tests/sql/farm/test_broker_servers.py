"""broker_servers: what may be connected at all, who maintains the list, and that nothing else says where an agent
connects."""

from typing import Any

import psycopg
import pytest
from api_actors import Actor, Farm

REQUEST: dict[str, Any] = {"platform": "paper", "server": "Paper", "login": "7", "password": "p"}


def listed(operator: Actor, **fields: object) -> dict[str, Any]:
    return operator.can(
        "save_broker_server", {"platform": "paper", "server": "Practice", "address": "10.0.0.1:7000"} | fields
    )


def test_a_server_that_is_not_listed_cannot_be_connected_on_any_platform(farm: Farm) -> None:
    user = farm.user()
    for platform, server in (
        ("paper", "127.0.0.1:5432"), ("paper", "169.254.169.254:80"), ("mt5", "Elsewhere"), ("mt4", "Paper"),
        ("ctrader", "Paper"),
    ):  # fmt: skip
        said = user.cannot("connect_account", REQUEST | {"platform": platform, "server": server}, "TC220")
        assert server in said
        assert platform in said
    assert farm.row("select count(*) from public.trading_accounts")["count"] == 0
    listed(farm.operator(), platform="mt4", address=None)
    farm.offline_vps("mt4")
    user.can("connect_account", REQUEST | {"platform": "mt4", "server": "Practice"})


def test_an_agent_gets_the_listed_address_and_users_never_see_it(farm: Farm) -> None:
    agent, user, operator = farm.agent("a"), farm.user(), farm.operator()
    listed(operator, title="For practice")
    account = farm.account(user, server="Practice")
    request = {"account_id": account, "epoch": 1}
    assert agent.can("account_credentials", request)["address"] == "10.0.0.1:7000"
    listed(operator, address="[::1]:7001")
    assert agent.can("account_credentials", request)["address"] == "[::1]:7001"
    (row,) = user.sees("select platform, server, title from public.broker_servers where server = 'Practice'")
    assert row == {"platform": "paper", "server": "Practice", "title": "For practice"}
    for reader in (user, agent, operator):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.sees("select address from public.broker_servers")
    (known,) = (s for s in operator.can("list_broker_servers", {})["servers"] if s["server"] == "Practice")
    assert (known["address"], known["accounts"]) == ("[::1]:7001", 1)


def test_other_platforms_need_no_address_and_take_none(farm: Farm) -> None:
    operator = farm.operator()
    assert operator.can("save_broker_server", {"platform": "mt5", "server": "Broker-Live"})["address"] is None
    operator.cannot(
        "save_broker_server", {"platform": "mt5", "server": "Broker-Live", "address": "10.0.0.1:443"}, "TC303"
    )


def test_a_server_is_one_however_it_is_written(farm: Farm) -> None:
    user, operator = farm.user(), farm.operator()
    farm.offline_vps("paper")
    listed(operator)
    assert listed(operator, server=" PRACTICE ", title="Again")["server"] == "Practice"
    assert farm.row("select count(*) from public.broker_servers where title = 'Again'")["count"] == 1
    account = user.can("connect_account", REQUEST | {"server": "prac\u200btice  "})["account_id"]
    assert farm.row("select server from public.trading_accounts where id = %s", (account,))["server"] == "Practice"
    for login in ("7", " 7 ", "\uff17", "7\u200b", "7\u00a0"):
        user.cannot("connect_account", REQUEST | {"server": "Practice", "login": login}, "TC202")


@pytest.mark.parametrize(
    "address",
    [
        None, "", "broker", "broker:", ":7000", "broker:0", "broker:65536", "broker:99999999999999999999",
        "http://broker:80",
        "user@broker:80", "broker:80/x", "bro ker:80", "broker:80\n", "broker:80;broker:81", "::1:80", "-broker:80",
        "a" * 254 + ":1", 7000,
    ],
)  # fmt: skip
def test_an_address_is_host_and_port_and_nothing_else(farm: Farm, address: object) -> None:
    request = {"platform": "paper", "server": "New", "address": address}
    code = "TC001" if isinstance(address, int) else "TC303"
    assert "address" in farm.operator().cannot("save_broker_server", request, code)
    assert farm.row("select count(*) from public.broker_servers where server = 'New'")["count"] == 0


@pytest.mark.parametrize("address", ["h:1", "broker.example:65535", "127.0.0.1:7000", "[::1]:7000", "a" * 253 + ":1"])
def test_addresses_that_are_some(farm: Farm, address: str) -> None:
    assert listed(farm.operator(), address=address)["address"] == address


def test_a_list_is_maintained_by_name_only(farm: Farm) -> None:
    operator, user = farm.operator(), farm.user()
    assert "port" in operator.cannot(
        "save_broker_server", {"platform": "paper", "server": "A", "address": "h:1", "port": 1}, "TC301"
    )
    operator.cannot("save_broker_server", {"platform": "abacus", "server": "A"}, "TC001")
    operator.cannot("save_broker_server", {"platform": "paper"}, "TC001")
    operator.cannot("save_broker_server", [], "TC001")
    listed(operator)
    account = farm.account(user, server="Practice")
    assert "1 account" in operator.cannot("remove_broker_server", {"platform": "paper", "server": "Practice"}, "TC221")
    user.can("remove_account", {"account_id": account})
    operator.can("remove_broker_server", {"platform": "paper", "server": "practice"})
    operator.cannot("remove_broker_server", {"platform": "paper", "server": "Practice"}, "TC220")
    actions = farm.rows(
        "select action, actor from public.audit_log where entity = 'broker_servers' and entity_id = 'Practice'"
    )
    assert [(a["action"], a["actor"]) for a in actions] == [("inserted", "operator"), ("deleted", "operator")]


@pytest.mark.parametrize(
    "settings",
    [
        {"address": "h:1"}, {"host": "h"}, {"port": 1}, {"token": "t"}, {"paper": {"address": "h:1"}},
        {"paper": {"Token": "t"}},
        {"ADDR": 1}, {"brokerAddress": 1}, {"server_url": 1}, {"URL": 1}, {"endpoint": 1}, {"socket": 1},
        {"web-socket": 1},
        {"ip": 1}, {"server.ip": 1}, {"serverPort": 1}, {"hostName": 1}, {"accessToken": 1}, {"proxy": 1},
        {"a": [{"b": [{"host": 1}]}]}, {"\uff48\uff4f\uff53\uff54": 1}, {"server": "h"}, {"apikey": 1}, {" Host ": 1},
        {"ho-st": 1}, {"route": "10.0.0.1:22"}, {"a": ["http://x"]},
        {"a": {"b": [[" 10.0.0.1 "]]}}, {"a": "10.0.0.1/8"}, {"a": "[::1]:22"},
        {"a": "::1"}, {"a": "[fe80::1%eth0]:5"}, {"a": "Broker.Example.com:443"}, {"a": "x://"},
        {"a": "see WSS://h/p"}, {"a": "localhost"}, {"a": "LOCALHOST:1"}, {"a": "u:p@h.example:1"},
        {"a": "h.example.:1/path"},
        {"a": "xn--bcher-kva.example:1"}, {"a": "b\u00fccher.example:1"}, {"a": "\uff11\uff10.0.0.1:22"},
        {"a": "10.\u200b0.0.1:22"},
        {"a": "999.1.1.1:1"}, {"a": "2001:db8:0:0:0:0:0:1"}, {"a": "::ffff:10.0.0.1"},
    ],
)  # fmt: skip
def test_settings_name_no_address_host_port_or_token(farm: Farm, settings: dict[str, Any]) -> None:
    user = farm.user()
    user.cannot("connect_account", REQUEST | {"settings": settings}, "TC222")
    account = farm.account(user)
    user.cannot("update_account", {"account_id": account, "settings": settings}, "TC222")
    assert farm.row("select settings from public.trading_accounts")["settings"] == {}


def test_settings_that_name_none_are_taken(farm: Farm) -> None:
    paper = {
        "balance": "10000",
        "leverage": 30,
        "order_timeout_s": 3,
        "read_timeout_s": 3,
        "ping_s": 1,
        "orders_per_second": 20,
    }
    settings = {"paper": paper, "profile": {"seed": 1, "latency_ms_min": 1}, "support": 1, "transport": 1, "tip": "zip"}
    settings["values"] = [
        "1.5", "0.01", "-3", "1e5", "EURUSD.m", "#US30.cash", "12:30", "12:30:00", "2026-11-28", "2026-11-28T12:30:00Z",
        "",
        "2026-11-28T12:30:00.123+02:00", "2026-11-28 12:30",
        "1.2.3", "28.11.2026 12:30", "1.5:2", "a:b", "GOLD/USD", "Europe/Berlin",
        "1:100", "12/30", "10/8", "1/2", "Mon 00:00-24:00", "v1.2",
        "user@example.com", "Broker-Live 3", 1.5, True, None, "1.10000/1.10010", "9:5.m",
    ]  # fmt: skip
    account = farm.account(farm.user(), settings=settings)
    assert farm.row("select settings from public.trading_accounts where id = %s", (account,))["settings"] == settings


def test_update_account_refuses_keys_that_it_does_not_know(farm: Farm) -> None:
    user = farm.user()
    account = farm.account(user)
    for key in ("passwrd", "server", "login", "platform", "user_id"):
        assert key in user.cannot("update_account", {"account_id": account, "name": "New", key: "x"}, "TC301")
    assert farm.row("select name from public.trading_accounts")["name"] != "New"
