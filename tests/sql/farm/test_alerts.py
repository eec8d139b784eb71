"""Alerts: one place for what a user has to know; one row until it is seen."""

from uuid import UUID

import pytest
from api_actors import Actor, Farm


@pytest.fixture
def owner(farm: Farm) -> Actor:
    return farm.user()


def raise_alert(farm: Farm, account: UUID, reason: str = "stop_out", detail: str = "{}") -> int:
    return int(
        farm.row(
            "select private.raise_alert(%s, 'stop_out', %s, 'critical', 'the broker closed a copy', %s) as id",
            (account, reason, detail),
        )["id"]
    )


def alerts(farm: Farm) -> list[tuple[str, int, bool]]:
    return [
        (r["reason"], r["times"], r["seen"])
        for r in farm.rows("select reason, times, seen_at is not null as seen from public.alerts order by id")
    ]


def test_the_same_thing_is_counted_until_it_is_seen_and_new_afterwards(farm: Farm, owner: Actor) -> None:
    account = farm.account(owner)
    first = raise_alert(farm, account, detail='{"lots": "1"}')
    assert raise_alert(farm, account, detail='{"lots": "2"}') == first
    assert alerts(farm) == [("stop_out", 2, False)]
    assert farm.row("select detail from public.alerts")["detail"] == {"lots": "2"}
    seen = owner.can("mark_alert_seen", {"alert_id": first})
    assert owner.can("mark_alert_seen", {"alert_id": first}) == seen, "again changes nothing"
    assert raise_alert(farm, account) != first
    assert alerts(farm) == [("stop_out", 2, True), ("stop_out", 1, False)]


def test_other_things_and_other_accounts_have_alerts_of_their_own(farm: Farm, owner: Actor) -> None:
    one, other = farm.account(owner), farm.account(owner)
    assert len({raise_alert(farm, one), raise_alert(farm, one, "no_money"), raise_alert(farm, other)}) == 3


def test_nobody_sees_away_an_alert_of_another(farm: Farm, owner: Actor) -> None:
    alert = raise_alert(farm, farm.account(owner))
    farm.user("stranger").cannot("mark_alert_seen", {"alert_id": alert}, "TC106")
    for wrong in ({}, {"alert_id": None}, {"alert_id": 999_999_999}):
        owner.cannot("mark_alert_seen", wrong, "TC106")
    owner.cannot("mark_alert_seen", {"alert_id": "x"}, "TC001")
    assert alerts(farm) == [("stop_out", 1, False)]


def marked(answer: dict[str, object]) -> object:
    return answer["alert_ids"]


def test_several_alerts_are_marked_together(farm: Farm, owner: Actor) -> None:
    one, other = farm.account(owner), farm.account(owner)
    ids = [raise_alert(farm, one), raise_alert(farm, one, "no_money"), raise_alert(farm, other)]
    assert marked(owner.can("mark_alerts_seen", {"alert_ids": ids[:2]})) == ids[:2]
    assert marked(owner.can("mark_alerts_seen", {"alert_ids": ids})) == ids[2:], "what was seen stays as it was"
    assert marked(owner.can("mark_alerts_seen", {"alert_ids": ids})) == []
    assert marked(owner.can("mark_alerts_seen", {"alert_ids": []})) == []
    assert {seen for _, _, seen in alerts(farm)} == {True}
    assert raise_alert(farm, one) not in ids


def test_all_alerts_until_a_time_are_marked_and_later_ones_are_not(farm: Farm, owner: Actor) -> None:
    account = farm.account(owner)
    old, late = (
        farm.row(
            "insert into public.alerts (user_id, account_id, kind, reason, message, updated_at)"
            " values (%s, %s, 'copy', %s, 'a message of its time', %s) returning id",
            (owner.user_id, account, reason, at),
        )["id"]
        for reason, at in (("stop_out", "2026-12-01T08:00:00Z"), ("no_money", "2026-12-01T09:00:00Z"))
    )
    assert marked(owner.can("mark_alerts_seen", {"until": "2026-12-01T08:00:00Z"})) == [old]
    assert marked(owner.can("mark_alerts_seen", {"until": "2026-12-01T08:59:59Z"})) == []
    assert marked(owner.can("mark_alerts_seen", {"until": "2026-12-01T10:00:00+01:00"})) == [late]


def test_only_own_alerts_are_marked_together(farm: Farm, owner: Actor) -> None:
    stranger, operator = farm.user("stranger"), farm.operator()
    mine, theirs = raise_alert(farm, farm.account(owner)), raise_alert(farm, farm.account(stranger))
    of_all = alert_operators(farm, None)
    for foreign in (theirs, of_all, 999_999_999):
        owner.cannot("mark_alerts_seen", {"alert_ids": [mine, foreign]}, "TC106")
    operator.cannot("mark_alerts_seen", {"alert_ids": [of_all, mine]}, "TC106")
    assert [seen for _, _, seen in alerts(farm)] == [False] * 3, "all or none"
    assert marked(stranger.can("mark_alerts_seen", {"until": "2999-01-01T00:00:00Z"})) == [theirs]
    assert marked(operator.can("mark_alerts_seen", {"until": "2999-01-01T00:00:00Z"})) == [of_all]
    assert marked(owner.can("mark_alerts_seen", {"until": "2999-01-01T00:00:00Z"})) == [mine]


@pytest.mark.parametrize(
    "request_",
    [
        {}, {"alert_ids": None}, {"alert_ids": [1], "until": "2026-12-01T00:00:00Z"}, {"alert_ids": 1},
        {"alert_ids": {"1": 1}}, {"alert_ids": ["1"]}, {"alert_ids": [1.5]}, {"alert_ids": [None]},
        {"alert_ids": list(range(1001))}, {"alert_ids": [10**30]}, {"until": "soon"}, {"until": "infinity"},
    ],
)  # fmt: skip
def test_a_malformed_list_of_alerts_is_refused(farm: Farm, owner: Actor, request_: dict[str, object]) -> None:
    raise_alert(farm, farm.account(owner))
    owner.cannot("mark_alerts_seen", request_, "TC001")
    assert alerts(farm) == [("stop_out", 1, False)]


def severities(farm: Farm) -> list[tuple[str, str]]:
    return [(r["reason"], r["severity"]) for r in farm.rows("select reason, severity from public.alerts order by id")]


def test_alerts_of_a_removed_account_are_no_longer_critical(farm: Farm, owner: Actor) -> None:
    gone, kept = farm.account(owner), farm.account(owner)
    for account in (gone, kept):
        raise_alert(farm, account)
    owner.can("remove_account", {"account_id": gone})
    assert severities(farm) == [("stop_out", "info"), ("stop_out", "critical")]
    raise_alert(farm, gone)
    raise_alert(farm, gone, "no_money")
    assert severities(farm) == [("stop_out", "info"), ("stop_out", "critical"), ("no_money", "info")]


def alert_operators(farm: Farm, vps: UUID | None, reason: str = "low_disk") -> int:
    told = "select private.alert_operators(%s, 'vps', %s, 'warning', 'its disk is nearly full', '{}') as id"
    return int(farm.row(told, (vps, reason))["id"])


def test_what_concerns_a_vps_or_the_installation_is_for_operators_only(farm: Farm, owner: Actor) -> None:
    vps, operator = farm.agent("a"), farm.operator()
    farm.account(owner)
    about_vps, about_all = alert_operators(farm, vps.vps_id), alert_operators(farm, None)
    assert alert_operators(farm, vps.vps_id) == about_vps
    assert alert_operators(farm, None) == about_all
    assert alert_operators(farm, farm.agent("b").vps_id) not in (about_vps, about_all)
    assert alert_operators(farm, vps.vps_id, "low_memory") not in (about_vps, about_all)
    for somebody in (owner, vps):
        assert somebody.sees("select id from public.alerts") == []
    owner.cannot("mark_alert_seen", {"alert_id": about_vps}, "TC106")
    assert len(operator.sees("select id from public.alerts")) == 4
    operator.can("mark_alert_seen", {"alert_id": about_vps})
    assert alert_operators(farm, vps.vps_id) != about_vps


@pytest.mark.own_database
@pytest.mark.usefixtures("quiet_server")
def test_an_alert_for_operators_rings_them(farm: Farm) -> None:
    ring = "update private.clockwork set last_run_at = now() - interval '1 second' where name = 'doorbells'"
    farm.rows(ring)
    farm.rows("select private.ring_doorbells()")
    farm.clear_broadcasts()
    alert_operators(farm, None)
    farm.rows(ring)
    farm.rows("select private.ring_doorbells()")
    assert len(farm.sent("operators")) == 1


@pytest.mark.own_database
@pytest.mark.usefixtures("quiet_server")
def test_an_alert_rings_its_user(farm: Farm, owner: Actor) -> None:
    account = farm.account(owner)
    ring = "update private.clockwork set last_run_at = now() - interval '1 second' where name = 'doorbells'"
    farm.rows(ring)
    farm.rows("select private.ring_doorbells()")
    farm.clear_broadcasts()
    raise_alert(farm, account)
    farm.rows(ring)
    farm.rows("select private.ring_doorbells()")
    assert len(farm.sent(f"user:{owner.user_id}")) == 1


def test_alerts_past_their_retention_go(farm: Farm, owner: Actor) -> None:
    account = farm.account(owner)
    farm.rows(
        "insert into public.alerts (user_id, account_id, kind, reason, message, updated_at)"
        " values (%s, %s, 'stop_out', 'stop_out', 'a message of long ago', now() - interval '91 days')",
        (owner.user_id, account),
    )
    raise_alert(farm, account, "no_money")
    farm.rows("select private.delete_expired()")
    assert alerts(farm) == [("no_money", 1, False)]
