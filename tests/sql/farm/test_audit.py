"""The audit log: written by triggers, readable by those concerned, unchangeable."""

import psycopg
import pytest
from api_actors import Farm


def test_changes_of_accounts_assignments_vpses_and_settings_are_written_down(farm: Farm) -> None:
    agent, user, operator = farm.agent("a"), farm.user(), farm.operator()
    account = farm.account(user)
    user.can("update_account", {"account_id": account, "name": "Other"})
    operator.can("set_setting", {"key": "lease_s", "value": 20})
    operator.can("drain_vps", {"vps_id": agent.vps_id})
    entries = operator.sees("select entity, action, actor, details from public.audit_log order by id")
    assert ("trading_accounts", "updated", "user", ["Other"]) in [
        (e["entity"], e["action"], e["actor"], e["details"].get("name", [None])[1:])
        for e in entries
        if e["action"] == "updated"
    ]
    kinds = {(e["entity"], e["action"], e["actor"]) for e in entries}
    assert {
        ("operators", "inserted", "service"),
        ("enrollment_tokens", "inserted", "service"),
        ("vps_instances", "inserted", "service"),
        ("vps_instances", "updated", "agent"),
        ("vps_instances", "updated", "operator"),
        ("trading_accounts", "inserted", "user"),
        ("account_vps_assignments", "inserted", "user"),
        ("system_config", "updated", "operator"),
    } <= kinds


def test_a_changed_copier_says_what_it_was_before(farm: Farm) -> None:
    user = farm.user()
    copier = user.can(
        "save_copier", {"master_account_id": farm.account(user), "follower_account_id": farm.account(user)}
    )["copier_id"]
    user.can("save_copier", {"id": copier, "sizing_value": "0.5", "symbols": {"US30": "DJ30"}})
    entries = user.sees(
        "select action, details from public.audit_log where entity = 'copiers' and entity_id = %s order by id",
        (copier,),
    )
    assert entries[-1] == {"action": "updated", "details": {"sizing_value": [1, 0.5]}}
    assert len(user.sees("select from public.audit_log where entity = 'symbol_mappings'")) == 1


def test_heartbeats_and_figures_leave_no_entries(farm: Farm) -> None:
    agent = farm.agent("a")
    account = farm.account(farm.user())
    session = farm.session(agent, account)
    # the first figures are kept as the initial balance, which is written down
    agent.can(
        "report_account_state", {"account_id": account, "epoch": 1, "session": session, "balance": "1", "equity": "1"}
    )
    before = farm.row("select count(*) from public.audit_log")
    for _ in range(3):
        agent.can("vps_heartbeat", {"accounts": [{"account_id": account, "session": session, "status": "connected"}]})
        agent.can(
            "report_account_state",
            {"account_id": account, "epoch": 1, "session": session, "balance": "1", "equity": "1"},
        )
    assert farm.row("select count(*) from public.audit_log") == before


@pytest.mark.own_database
@pytest.mark.parametrize(
    "statement",
    [
        "update public.audit_log set actor = 'user' where true",
        "delete from public.audit_log where true",
        "truncate public.audit_log",
    ],
)
def test_the_log_is_append_only_even_for_its_owner(farm: Farm, statement: str) -> None:
    farm.user()
    farm.operator()
    farm.rows("set role postgres")
    with pytest.raises(psycopg.Error, match="append-only") as refused:
        farm.owner.execute(statement)
    assert refused.value.sqlstate == "TC240"


def test_a_user_reads_only_his_own_history(farm: Farm) -> None:
    mine, other = farm.user(), farm.user()
    farm.account(mine)
    farm.account(other)
    assert {row["user_id"] for row in mine.sees("select user_id from public.audit_log")} == {mine.user_id}


def test_retention_removes_what_is_past_it_and_nothing_else(farm: Farm) -> None:
    farm.agent("a")
    farm.rows("alter table public.audit_log disable trigger user")
    farm.rows(
        "update public.audit_log set at = now() - interval '800 days' where id = (select min(id) from public.audit_log)"
    )
    farm.rows("alter table public.audit_log enable trigger user")
    farm.rows("update public.connection_health_logs set at = now() - interval '20 days' where kind = 'state'")
    left = farm.row("select count(*) - 1 as n from public.audit_log")["n"]
    farm.rows("select private.delete_expired()")
    assert farm.row("select count(*) as n from public.audit_log")["n"] == left
    assert farm.rows("select from public.connection_health_logs where kind = 'state'") == []


def test_settings_are_the_operators(farm: Farm) -> None:
    farm.operator().cannot("set_setting", {"key": "no_such", "value": 1}, "TC200")
    farm.user().cannot("set_setting", {"key": "lease_s", "value": 20}, "TC107")
