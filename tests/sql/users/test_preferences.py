"""set_preferences: how a person wants the pages shown."""

from typing import Any

import pytest
from api_actors import Farm


def test_what_a_request_leaves_out_stays_as_it_is(farm: Farm) -> None:
    user = farm.user()
    assert user.can("set_preferences", {}) == {"time_zone": None, "theme": "system", "tour": "open"}
    user.can("set_preferences", {"time_zone": "Europe/Berlin"})
    user.can("set_preferences", {"theme": "dark"})
    kept = {"time_zone": "Europe/Berlin", "theme": "dark", "tour": "done"}
    assert user.can("set_preferences", {"tour": "done"}) == kept
    assert user.can("set_preferences", {"time_zone": None}) == kept | {"time_zone": None}


@pytest.mark.parametrize(
    ("request_", "code", "named"),
    [
        ({"time_zone": "Mars/Olympus"}, "TC303", "Mars/Olympus"),
        ({"time_zone": "europe/berlin"}, "TC303", "europe/berlin"),
        ({"time_zone": 3}, "TC001", "time_zone"),
        ({"theme": "pink"}, "TC303", "pink"),
        ({"tour": "maybe"}, "TC303", "maybe"),
        ({"colour": "red"}, "TC301", "colour"),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_nothing_is_saved(
    farm: Farm, request_: dict[str, Any], code: str, named: str
) -> None:
    user = farm.user()
    assert named in user.cannot("set_preferences", {"theme": "dark"} | request_, code)
    assert user.sees("select * from public.user_preferences") == []


def test_preferences_are_their_owners_alone(farm: Farm) -> None:
    user, other = farm.user(), farm.user()
    user.can("set_preferences", {"theme": "dark"})
    assert other.sees("select * from public.user_preferences") == []
    assert len(user.sees("select * from public.user_preferences")) == 1
