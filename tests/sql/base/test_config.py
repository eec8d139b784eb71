"""Settings that only make sense together (base/setting.sql): a lease that could never be judged is refused."""

import psycopg
import pytest
from api_actors import Farm


def test_a_lease_too_short_to_be_judged_is_refused_with_every_setting_named(farm: Farm) -> None:
    operator = farm.operator()
    message = operator.cannot("set_setting", {"key": "lease_s", "value": 12}, "TC215")
    assert all(name in message for name in ("lease_s", "maintain_s", "heartbeat_s", "12"))
    operator.cannot("set_setting", {"key": "maintain_s", "value": 5.5}, "TC215")
    operator.cannot("set_setting", {"key": "heartbeat_s", "value": 3.5}, "TC215")
    operator.can("set_setting", {"key": "lease_s", "value": 12.1})
    operator.can("set_setting", {"key": "maintain_s", "value": 1})
    operator.can("set_setting", {"key": "lease_s", "value": 7})


def test_the_project_owners_are_refused_in_studio_as_well(farm: Farm) -> None:
    with pytest.raises(psycopg.Error) as refused, farm.owner.transaction():
        farm.rows("update public.system_config set value = '10' where key = 'lease_s'")
    assert refused.value.sqlstate == "TC215"


@pytest.mark.own_database
@pytest.mark.parametrize("seconds", ["12.5", "15"])
def test_without_a_scheduler_a_lost_vps_is_noticed_with_every_lease_that_is_allowed(farm: Farm, seconds: str) -> None:
    """Then maintain() runs inside heartbeats, maintain_s and a heartbeat apart: that is no outage of the database."""
    farm.rows("update public.system_config set value = to_jsonb(%s::numeric) where key = 'lease_s'", (seconds,))
    lost = farm.agent("a")
    farm.agent("b")
    farm.lose_lease(lost)
    farm.maintain(gap=6)
    assert farm.vps(lost)["status"] == "offline"


def test_agents_are_told_how_often_to_be_heard_of(farm: Farm) -> None:
    agent = farm.agent("a")
    assert agent.can("vps_heartbeat", {})["heartbeat_ms"] == 2000
    farm.operator().can("set_setting", {"key": "heartbeat_s", "value": 0.5})
    assert agent.can("vps_heartbeat", {})["heartbeat_ms"] == 500
