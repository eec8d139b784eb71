"""equity_curve: equity over time in at most 500 buckets, without losing a low or a high."""

from typing import Any
from uuid import UUID

import pytest
from api_actors import Actor, Farm

Bucket = tuple[str, list[str], str]
DAY = {"from": "2026-12-01T00:00:00Z", "to": "2026-12-02T00:00:00Z"}


@pytest.fixture
def owner(farm: Farm) -> Actor:
    return farm.user()


@pytest.fixture
def account(farm: Farm, owner: Actor) -> UUID:
    """A day of snapshots, one a minute: equity 1000, up by one each, but 900 at 06:30; none from 12:00 to 18:00."""
    account: UUID = farm.account(owner)
    farm.rows(
        "insert into public.account_snapshots (account_id, at, balance, equity)"
        " select %s, '2026-12-01T00:00Z'::timestamptz + make_interval(mins => m), 1000,"
        " case m when 390 then 900 else 1000 + m end"
        " from generate_series(0, 1439) m where m not between 720 and 1079",
        (account,),
    )
    return account


def curve(actor: Actor, account: UUID, **request: Any) -> list[Bucket]:
    told = actor.can("equity_curve", DAY | {"account_id": account} | request)
    return [(point["at"][11:16], point["equity"], point["balance"]) for point in told["points"]]


def test_a_bucket_has_first_lowest_highest_and_last_and_a_gap_has_none(owner: Actor, account: UUID) -> None:
    assert curve(owner, account, points=4) == [
        ("00:00", ["1000", "1000", "1359", "1359"], "1000"),
        ("06:00", ["1360", "900", "1719", "1719"], "1000"),
        ("18:00", ["2080", "2080", "2439", "2439"], "1000"),
    ]


def test_buckets_are_never_shorter_than_the_distance_of_snapshots(owner: Actor, account: UUID) -> None:
    told = owner.can("equity_curve", {"account_id": account, "from": DAY["from"], "to": "2026-12-01T01:00:00Z"})
    assert (told["bucket_s"], len(told["points"])) == (60, 60)


def test_the_end_is_exclusive_and_the_beginning_inclusive(owner: Actor, account: UUID) -> None:
    request = {"from": "2026-12-01T00:10:00Z", "to": "2026-12-01T00:12:00Z", "points": 2}
    assert [equity[0] for _, equity, _ in curve(owner, account, **request)] == ["1010", "1011"]


def test_a_long_time_is_made_of_days(farm: Farm, owner: Actor, account: UUID) -> None:
    for day in (1, 2, 9):
        farm.rows(
            "insert into public.account_days (account_id, day, user_id, time_zone, ends_at, first_at, last_at,"
            " first_equity, min_equity, max_equity, last_equity, first_balance, min_balance, max_balance, last_balance)"
            " select a.id, (b.at)::date, a.user_id, 'UTC', 'infinity', b.at, b.at + interval '22 hours',"
            " 100 + n, 50 + n, 200 + n, 150 + n, 1, 1, 9, n from (values (%s)) d (n)"
            " cross join lateral (select '2026-12-01T00:01Z'::timestamptz + make_interval(days => n)) b (at)"
            " cross join public.trading_accounts a where a.id = %s",
            (day, account),
        )
    told = owner.can("equity_curve", {"account_id": account, "from": "2026-12-02T00:00:00Z",
                                      "to": "2026-12-12T00:00:00Z", "points": 5})  # fmt: skip
    assert told["bucket_s"] == 2 * 86400
    assert [(p["at"][:10], p["equity"], p["balance"]) for p in told["points"]] == [
        ("2026-12-02", ["101", "51", "202", "152"], "2"),
        ("2026-12-10", ["109", "59", "209", "159"], "9"),
    ]


def test_of_another_there_is_no_such_account_but_operators_read_it(farm: Farm, owner: Actor, account: UUID) -> None:
    farm.user().cannot("equity_curve", {"account_id": account}, "TC106")
    assert curve(farm.operator(), account, points=4) == curve(owner, account, points=4)


@pytest.mark.parametrize(
    ("request_", "code", "named"),
    [
        ({"from": DAY["to"], "to": DAY["from"]}, "TC303", "from"),
        ({"from": "0001-01-01T00:00:00Z"}, "TC303", "from"),
        ({"from": "soon"}, "TC001", "from"),
        ({"points": 501}, "TC001", "points"),
        ({"points": 0}, "TC001", "points"),
    ],
)
def test_a_wrong_request_is_refused_by_name(
    owner: Actor, account: UUID, request_: dict[str, Any], code: str, named: str
) -> None:
    assert named in owner.cannot("equity_curve", {"account_id": account} | request_, code)
