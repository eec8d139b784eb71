"""How much one user may have of what everybody's planner works with; calls at the same time make no more."""

from collections.abc import Iterator

import psycopg
import pytest
from netting_harness import NettingWorld
from two_connections import Session, in_background, wait_until_held_up

from agent.stack.database import Database


@pytest.fixture
def sessions(database: Database, world: NettingWorld) -> Iterator[tuple[Session, Session]]:
    pair = Session(database, world), Session(database, world)
    with pair[0].db, pair[1].db:
        yield pair


def allow(world: NettingWorld, key: str, value: int) -> None:
    world.db.execute("update public.system_config set value = to_jsonb(%s::integer) where key = %s", (value, key))


def pair_of(world: NettingWorld, master: str, follower: str) -> dict[str, str]:
    return {"master_account_id": world.accounts[master], "follower_account_id": world.accounts[follower]}


def test_the_limits_are_settings(world: NettingWorld) -> None:
    found = world.rows("select key, value from public.system_config where key like '%%_per_user_max' order by key")
    assert {row["key"]: row["value"] for row in found} == {
        "accounts_per_user_max": 200,
        "copiers_per_user_max": 500,
        "protection_rules_per_user_max": 1000,
        "symbol_mappings_per_user_max": 2000,
    }


def test_a_user_has_so_many_copiers_at_most(world: NettingWorld) -> None:
    allow(world, "copiers_per_user_max", 2)
    copier = world.copy("M", "F")
    world.copy("M2", "F")
    with pytest.raises(psycopg.Error, match="the limit of copiers per user is 2, this would make 3") as error:
        world.copy("M", "N")
    assert (error.value.sqlstate, error.value.diag.message_hint) == (
        "TC330",
        "Remove some first, or ask an operator to raise copiers_per_user_max.",
    )
    world.as_user("save_copier", {"id": copier, "name": "changed all the same"})
    world.as_user("remove_copier", {"copier_id": copier, "mode": "close_now"})
    world.copy("M", "N")


def test_a_user_has_so_many_mappings_at_most(world: NettingWorld) -> None:
    allow(world, "symbol_mappings_per_user_max", 3)
    copier = world.copy("M", "F", symbols={"A": "B", "C": "D"})
    other = world.copy("M2", "F", symbols={"E": "F"})
    with pytest.raises(psycopg.Error, match="the limit of symbol mappings per user is 3, this would make 4") as error:
        world.as_user("save_copier", {"id": other, "symbols": {"E": "F", "G": "H"}})
    assert error.value.sqlstate == "TC331"
    world.as_user("save_copier", {"id": copier, "symbols": {"C": "D"}})
    world.as_user("save_copier", {"id": other, "symbols": {"E": "F", "G": "H"}})


def test_a_user_has_so_many_protection_rules_at_most(world: NettingWorld) -> None:
    allow(world, "protection_rules_per_user_max", 1)
    rule = {"account_id": world.accounts["F"], "threshold": "5"}
    saved = world.as_user("save_protection_rule", rule | {"kind": "daily_loss"})
    with pytest.raises(psycopg.Error, match="the limit of protection rules per user is 1, this would make 2") as error:
        world.as_user("save_protection_rule", rule | {"kind": "trailing_drawdown"})
    assert error.value.sqlstate == "TC332"
    world.as_user("save_protection_rule", {"id": saved["rule_id"], "threshold": "6"})
    world.as_user("remove_protection_rule", {"rule_id": saved["rule_id"]})
    world.as_user("save_protection_rule", rule | {"kind": "trailing_drawdown"})


def test_the_table_itself_keeps_the_limit(world: NettingWorld) -> None:
    allow(world, "copiers_per_user_max", 1)
    world.copy("M", "F")
    with pytest.raises(psycopg.Error, match="the limit of copiers per user is 1") as error, world.db.transaction():
        world.db.execute(
            "insert into public.copiers (user_id, master_account_id, follower_account_id) values (%s, %s, %s)",
            (world.user, world.accounts["M2"], world.accounts["N"]),
        )
    assert error.value.sqlstate == "TC330"


@pytest.mark.own_database
def test_two_calls_at_once_make_no_more_than_the_limit(world: NettingWorld, sessions: tuple[Session, Session]) -> None:
    allow(world, "copiers_per_user_max", 1)
    first, second = sessions
    first.begin(world.user)
    first.say("save_copier", pair_of(world, "M", "F"))
    thread, outcome = in_background(lambda: second.outcome(world.user, "save_copier", pair_of(world, "M2", "N")))
    wait_until_held_up(world, second, first)
    first.db.commit()
    thread.join()
    assert outcome == ["TC330"]
    assert world.one("select count(*) from public.copiers") == 1


@pytest.mark.own_database
def test_two_rules_saved_at_once_make_no_more_than_the_limit(
    world: NettingWorld, sessions: tuple[Session, Session]
) -> None:
    allow(world, "protection_rules_per_user_max", 1)
    first, second = sessions
    first.begin(world.user)
    rule = {"kind": "daily_loss", "threshold": "5"}
    first.say("save_protection_rule", rule | {"account_id": world.accounts["F"]})
    thread, outcome = in_background(
        lambda: second.outcome(world.user, "save_protection_rule", rule | {"account_id": world.accounts["N"]})
    )
    wait_until_held_up(world, second, first)
    first.db.commit()
    thread.join()
    assert outcome == ["TC332"]


@pytest.mark.own_database
def test_one_users_copier_does_not_wait_for_anothers(world: NettingWorld, sessions: tuple[Session, Session]) -> None:
    """A save that takes long holds up nobody else's: only copiers of one user can close a circle."""
    first, second = sessions
    other = world._user("other@example.test")
    world.db.execute("update public.trading_accounts set user_id = %s where id = any(%s::uuid[])",
                     (other, [world.accounts["M2"], world.accounts["N"]]))  # fmt: skip
    first.begin(world.user)
    first.say("save_copier", pair_of(world, "M", "F"))
    second.db.execute("set lock_timeout = '5s'")
    assert second.outcome(other, "save_copier", pair_of(world, "M2", "N")) == "done"
    first.db.rollback()


INSERT_ACCOUNT = (
    "insert into public.trading_accounts (user_id, platform, server, login, name, removed_at)"
    " values (%s, 'paper', 'x', %s, 'n', %s) returning id"
)


def count_of_accounts(world: NettingWorld) -> int:
    return int(
        world.one("select count(*) from public.trading_accounts where user_id = %s and removed_at is null", world.user)
    )


def test_the_table_itself_keeps_the_limit_of_accounts(world: NettingWorld) -> None:
    count = count_of_accounts(world)
    allow(world, "accounts_per_user_max", count)
    message = f"accounts per user is {count}, this would make {count + 1}"
    with pytest.raises(psycopg.Error, match=message) as error, world.db.transaction():
        world.db.execute(INSERT_ACCOUNT, (world.user, "1", None))
    assert error.value.sqlstate == "TC204"


def test_what_comes_back_or_changes_hands_counts_as_well(world: NettingWorld) -> None:
    other = world._user("other@example.test")
    foreign = world.one(INSERT_ACCOUNT, other, "1", None)
    removed = world.one(INSERT_ACCOUNT, world.user, "2", "2026-01-01")
    allow(world, "accounts_per_user_max", count_of_accounts(world))
    copier, lost = world.copy("M", "F"), world.copy("M2", "F")
    world.db.execute("update public.copiers set removed_at = now() where id = %s", (lost,))
    world.db.execute("update public.copiers set removed_at = null where id = %s", (lost,))
    world.db.execute("update public.copiers set removed_at = now() where id = %s", (lost,))
    allow(world, "copiers_per_user_max", 1)
    for statement, row, code in (
        ("update public.trading_accounts set removed_at = null where id = %s", removed, "TC204"),
        (f"update public.trading_accounts set user_id = '{world.user}' where id = %s", foreign, "TC204"),
        ("update public.copiers set removed_at = null where id = %s", lost, "TC330"),
    ):
        with pytest.raises(psycopg.Error) as error, world.db.transaction():
            world.db.execute(statement, (row,))
        assert error.value.sqlstate == code
    world.db.execute(
        "update public.trading_accounts set name = 'n', status = 'halted' where user_id = %s", (world.user,)
    )
    world.db.execute("update public.copiers set removed_at = now() where id = %s", (copier,))
    world.db.execute("update public.copiers set removed_at = null where id = %s", (lost,))


@pytest.mark.own_database
def test_two_accounts_connected_at_once_make_no_more_than_the_limit(
    world: NettingWorld, sessions: tuple[Session, Session]
) -> None:
    world.db.execute(
        "insert into public.broker_servers (platform, server, title, address)"
        " values ('paper', 'Paper', 'Paper', '127.0.0.1:7000')"
    )
    world.db.execute("update public.trading_accounts set claim = 'trading' where user_id = %s", (world.user,))
    count = count_of_accounts(world)
    allow(world, "accounts_per_user_max", count + 1)
    first, second = sessions
    account = {"platform": "paper", "server": "Paper", "password": "p"}
    first.begin(world.user)
    first.say("connect_account", account | {"login": "1"})
    thread, outcome = in_background(lambda: second.outcome(world.user, "connect_account", account | {"login": "2"}))
    wait_until_held_up(world, second, first)
    first.db.commit()
    thread.join()
    assert outcome == ["TC204"]
    assert count_of_accounts(world) == count + 1
