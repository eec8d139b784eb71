"""Finding a broker's server by name, and asking for one that is not listed."""

import pytest
from api_actors import Actor, Farm


@pytest.fixture
def user(farm: Farm) -> Actor:
    operator = farm.operator()
    for server, title in (("Broker-Demo", "Practice"), ("Broker-Live", "The broker"), ("Other_Broker", "Other")):
        operator.can("save_broker_server", {"platform": "mt5", "server": server, "title": title})
    return farm.user()


def found(user: Actor, query: str | None, platform: str = "mt5") -> list[str]:
    return [
        server["server"] for server in user.can("search_servers", {"platform": platform, "query": query})["servers"]
    ]


def test_names_and_titles_are_searched_in_any_case_and_beginnings_come_first(user: Actor) -> None:
    assert found(user, "BROKER") == ["Broker-Demo", "Broker-Live", "Other_Broker"]
    assert found(user, " the  Broker ") == ["Broker-Live"]
    assert found(user, "_b") == ["Other_Broker"]  # no wildcards
    assert found(user, "%") == []


def test_another_platforms_servers_are_not_found(user: Actor) -> None:
    assert found(user, "broker", "paper") == []
    user.cannot("search_servers", {"platform": "mt6"}, "TC001")


def test_a_server_is_asked_for_once_in_whatever_spelling(farm: Farm, user: Actor) -> None:
    for name in ("Broker-Live3", " broker-live3 ", "BROKER-LIVE3"):
        assert user.can("request_server", {"platform": "mt5", "name": name}) == {"listed": False}
    assert [row["name"] for row in user.sees("select name from public.server_requests")] == ["Broker-Live3"]
    assert farm.user().sees("select name from public.server_requests") == []


def test_a_listed_server_is_not_asked_for(user: Actor) -> None:
    assert user.can("request_server", {"platform": "mt5", "name": "broker-LIVE"}) == {"listed": True}
    assert user.sees("select * from public.server_requests") == []


def test_nobody_asks_for_more_than_fifty(user: Actor) -> None:
    for number in range(50):
        user.can("request_server", {"platform": "mt5", "name": f"Server {number}"})
    user.can("request_server", {"platform": "mt5", "name": "Server 7"})
    assert "50" in user.cannot("request_server", {"platform": "mt5", "name": "One more"}, "TC235")
