"""Every setting has a type, a range and a unit, whoever writes it; no allowed value stops the farm or trading."""

from decimal import Decimal
from typing import Any

import psycopg
import pytest
from api_actors import Farm
from netting_harness import NettingWorld

NUMBERS = """
  select key, value #>> '{}' as value, type, minimum, maximum, unit from public.system_config
  where minimum is not null"""


def written_in_studio(farm: Farm, key: str, value: str) -> tuple[str, str]:
    """What the project's owner is told who writes the value past every function: (code, message)."""
    with pytest.raises(psycopg.Error) as refused:
        farm.rows("update public.system_config set value = %s::jsonb where key = %s", (value, key))
    return str(refused.value.sqlstate), str(refused.value)


def test_every_number_is_refused_beyond_its_range_with_name_value_and_range(farm: Farm) -> None:
    operator = farm.operator()
    rows = farm.rows(NUMBERS)
    assert {"lease_s", "heartbeat_s", "retention_days.audit_log", "accounts_per_user_max"} <= {
        row["key"] for row in rows
    }
    for row in rows:
        step = Decimal(1) if row["type"] == "integer" else Decimal("0.000001")
        for value in (row["minimum"] - step, row["maximum"] + step, Decimal(10**12), Decimal(-1)):
            said = operator.cannot("set_setting", f'{{"key": "{row["key"]}", "value": {value:f}}}', "TC303")
            for word in (row["key"], f"{value:f}", f"{row['minimum']} to {row['maximum']} {row['unit']}"):
                assert word in said, (word, said)
            assert written_in_studio(farm, row["key"], f"{value:f}")[0] == "TC303"


@pytest.mark.parametrize("value", ['"20"', "null", "true", "{}", "[20]", '"NaN"', '"Infinity"', "15.0000001"])
def test_what_is_no_number_of_its_type_is_refused(farm: Farm, value: str) -> None:
    operator = farm.operator()
    for key in ("lease_s", "retention_batch"):
        said = operator.cannot("set_setting", f'{{"key": "{key}", "value": {value}}}', "TC302")
        assert key in said
        assert value in said
        assert written_in_studio(farm, key, value)[0] == "TC302"
    operator.cannot("set_setting", {"key": "lease_s"}, "TC302")
    operator.cannot("set_setting", {"key": "retention_batch", "value": 1000.5}, "TC302")
    assert farm.row("select value #>> '{}' as v from public.system_config where key = 'lease_s'")["v"] == "15"


def test_a_whole_number_with_a_point_is_kept_as_one_that_every_reader_can_cast(farm: Farm) -> None:
    assert farm.operator().can("set_setting", '{"key": "retention_batch", "value": 2.000e2}') == {
        "key": "retention_batch",
        "value": 200,
    }
    farm.maintain()
    assert farm.row("select value #>> '{}' as v from public.system_config where key = 'retention_batch'")["v"] == "200"


@pytest.mark.parametrize(
    "value",
    ["{}", "[]", "null", "1", '"paper"', '{"paper": null}', '{"paper": {}}', '{"paper": {"password": "yes"}}',
     '{"paper": true}',
     '{"paper": {"password": false, "address": "x"}}', '{"Paper!": {"password": false}}', '{"": {"password": false}}'],
)  # fmt: skip
def test_platforms_must_have_their_structure(farm: Farm, value: str) -> None:
    said = farm.operator().cannot("set_setting", f'{{"key": "platforms", "value": {value}}}', "TC302")
    assert "platforms" in said
    assert written_in_studio(farm, "platforms", value)[0] == "TC302"


def test_platforms_may_be_added_and_taken_away(farm: Farm) -> None:
    wanted = {"paper": {"password": False}, "other5": {"password": True}}
    assert farm.operator().can("set_setting", {"key": "platforms", "value": wanted})["value"] == wanted


@pytest.mark.parametrize(
    "statement",
    [
        "delete from public.system_config where key = 'lease_s'",
        "truncate public.system_config",
        "update public.system_config set maximum = 1e12 where key = 'lease_s'",
        "update public.system_config set minimum = 0 where key = 'lease_s'",
        "update public.system_config set type = 'integer' where key = 'lease_s'",
        "update public.system_config set unit = 'ms' where key = 'lease_s'",
        "update public.system_config set key = 'lease' where key = 'lease_s'",
    ],
)
def test_rows_and_ranges_change_by_migration_only(farm: Farm, statement: Any) -> None:
    with pytest.raises(psycopg.Error) as refused:
        farm.rows(statement)
    assert refused.value.sqlstate == "TC216"
    with farm.owner.transaction(force_rollback=True):
        farm.rows("set local tradecopier.migrating = on")
        farm.rows(statement)


@pytest.mark.parametrize(
    ("type", "minimum", "maximum", "unit"),
    [
        ("number", None, None, "s"),
        ("number", 1, None, "s"),
        ("number", 5, 1, "s"),
        ("number", -1, 1, "s"),
        ("number", "NaN", 5, "s"),
        ("number", 1, "NaN", "s"),
        ("number", 1, "Infinity", "s"),
        ("number", 1, 2, None),
        ("number", 1, 2, ""),
        ("text", 1, 2, "s"),
        (None, 1, 2, "s"),
        ("platforms", 1, 2, "platform"),
    ],
)
def test_a_row_without_type_range_or_unit_fails_loudly(
    farm: Farm, type: object, minimum: object, maximum: object, unit: object
) -> None:
    value = '{"paper": {"password": true}}' if type == "platforms" else "1.5"
    with pytest.raises(psycopg.Error):
        farm.rows(
            "insert into public.system_config (key, value, type, minimum, maximum, unit, description)"
            " values ('a_s', %s::jsonb, %s, %s, %s, %s, 'Of tomorrow')",
            (value, type, minimum, maximum, unit),
        )


def test_a_new_row_must_fit_its_own_range(farm: Farm) -> None:
    with pytest.raises(psycopg.Error) as refused:
        farm.rows("insert into public.system_config (key, value, type, minimum, maximum, unit, description)"
                  " values ('new_max', '11', 'integer', 1, 10, 'rows', 'Of tomorrow')")  # fmt: skip
    assert refused.value.sqlstate == "TC303"


def test_every_setting_is_used(farm: Farm) -> None:
    """A number that can be turned and does nothing misleads whoever turns it."""
    unused = farm.rows(
        "select c.key from public.system_config c where not exists (select from pg_catalog.pg_proc p"
        " where p.pronamespace::regnamespace::text in ('private', 'public') and p.proname <> 'check_settings_together'"
        # limits per user are looked up by the name of their table
        " and (position(quote_literal(c.key) in p.prosrc) > 0"
        "   or c.key like '%%_per_user_max' and position(quote_literal('_per_user_max') in p.prosrc) > 0))"
    )
    assert unused == []


# -- no allowed value stops anything --------------------------------------------------------------------------------


def write(world: NettingWorld, values: dict[str, str]) -> None:
    """As the project's owner in Studio."""
    for key, value in values.items():
        world.db.execute("update public.system_config set value = %s::jsonb where key = %s", (value, key))


#: what lease_s, maintain_s and heartbeat_s must be first, so that the third may be at its end (TC215)
MAKES_ROOM = {
    ("lease_s", "minimum"): {"maintain_s": "1", "heartbeat_s": "0.5"},
    ("maintain_s", "maximum"): {"lease_s": "120"},
    ("heartbeat_s", "maximum"): {"lease_s": "30"},
}
#: and how all three come back, one after the other
BACK = (("maintain_s", "1"), ("heartbeat_s", "0.5"), ("lease_s", "15"), ("maintain_s", "4"), ("heartbeat_s", "2"))


def trade(world: NettingWorld) -> None:
    """Both agents are heard of, a trade is copied and closed again, and the clock's work is done."""
    for account in ("M", "F"):
        answer = world.as_agent(account, "vps_heartbeat", {})
        assert answer["status"] == "online"
        assert answer["lease_ms"] > 2 * answer["heartbeat_ms"]
    # a slow machine may take longer for the rest than the shortest lease
    world.db.execute(
        "update public.vps_instances set lease_expires_at = clock_timestamp() + interval '1 hour' where true"
    )
    # agents tell figures that have not changed every 20 s, and looks take their time: so old they may be
    world.db.execute(
        "update public.trading_accounts set funds_at = clock_timestamp() - interval '25 seconds' where true"
    )
    world.db.execute(
        "update public.account_symbols set quoted_at = clock_timestamp() - interval '25 seconds' where true"
    )
    position = world.opened("M")
    (execution,) = world.open_executions("F")
    assert execution["offered_at"] < execution["send_before"]
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    world.send("M", world.event("closed", position | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []
    world.db.execute("update private.clockwork set last_run_at = now() - interval '3 seconds' where name = 'maintain'")
    world.db.execute("update private.clockwork set last_run_at = now() - interval '2 hours' where name <> 'maintain'")
    done = world.one("select private.maintain()")
    assert (done["ran"], done["errors"]) == (True, []), done
    world.one("select private.ring_doorbells()")
    assert world.rows("select from public.vps_instances where status <> 'online'") == []


def test_at_both_ends_of_every_range_the_farm_lives_and_copies(world: NettingWorld) -> None:
    world.copy("M", "F", sizing_mode="balance_ratio")
    trade(world)
    for row in world.rows(NUMBERS):
        for end in ("minimum", "maximum"):
            write(world, MAKES_ROOM.get((row["key"], end), {}))
            write(world, {row["key"]: str(row[end])})
            trade(world)
            assert world.one("select count(*) from public.alerts where kind = 'planner'") == 0, (row["key"], end)
            for key, value in BACK:
                write(world, {key: value})
            write(world, {row["key"]: row["value"]})
