"""my_session: what every page shows around its content."""

from api_actors import Farm


def test_a_new_user_has_defaults_and_nothing(farm: Farm) -> None:
    user = farm.user()
    told = user.can("my_session", {})
    assert told["user_id"] == str(user.user_id)
    assert (told["operator"], told["trading"]["state"]) == (False, "on")
    assert told["preferences"] == {"time_zone": None, "theme": "system", "tour": "open"}
    assert told["counts"] == {"accounts": 0, "copiers": 0, "open_positions": 0}
    assert told["unseen_alerts"] == {"critical": 0, "warning": 0, "info": 0}


def test_only_the_callers_own_are_counted_also_for_an_operator(farm: Farm) -> None:
    user, operator = farm.user(), farm.operator()
    account = farm.account(user)
    farm.rows(
        "insert into public.alerts (user_id, account_id, kind, reason, message, severity)"
        " values (%s, %s, 'stop_out', 'stop_out', 'a message that says something', 'critical')",
        (user.user_id, account),
    )
    user.can("set_preferences", {"time_zone": "Asia/Tokyo", "theme": "dark"})
    told = user.can("my_session", {})
    assert (told["counts"]["accounts"], told["unseen_alerts"]["critical"]) == (1, 1)
    assert told["preferences"]["time_zone"] == "Asia/Tokyo"
    others = operator.can("my_session", {})
    assert (others["operator"], others["counts"]["accounts"], others["unseen_alerts"]["critical"]) == (True, 0, 0)
