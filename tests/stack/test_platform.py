"""platform.sql: the roles, privileges and functions that hosted has."""

import json
from collections.abc import Callable, Iterator

import psycopg
import pytest

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer
from agent.stack.schema import apply_platform


@pytest.fixture(scope="module", params=["as made", "after table reads"])
def bare_database(
    request: pytest.FixtureRequest, postgres_server: PostgresServer, serve_tables: Callable[[Database], None]
) -> Iterator[Database]:
    """The platform without the project's migrations: newly created, and after a stack has served from it."""
    bare = Database.create(postgres_server, "template_platform")
    with bare.connect() as connection:
        apply_platform(connection)
        postgres_server.passwords.give_to(connection)
    if request.param == "after table reads":
        with bare.connect("postgres") as connection:
            connection.execute("create table public.probe_read (id integer primary key)")
            connection.execute("alter table public.probe_read enable row level security")
        serve_tables(bare)
    yield bare
    bare.drop()


@pytest.fixture
def database(postgres_server: PostgresServer, bare_database: Database) -> Iterator[Database]:
    copy = Database.create(postgres_server, "test_platform", bare_database)
    yield copy
    copy.drop()


def test_applies_twice(database: Database) -> None:
    with database.connect() as connection:
        apply_platform(connection)
        apply_platform(connection)


def test_postgres_is_no_superuser_but_bypasses_rls(database: Database) -> None:
    with database.connect() as connection:
        rows = connection.execute(
            "select rolname, rolsuper, rolbypassrls from pg_roles where rolname in ('postgres', 'service_role',"
            " 'authenticated')"
            " order by 1"
        ).fetchall()
    assert rows == [("authenticated", False, False), ("postgres", False, True), ("service_role", False, True)]


def test_roles_have_hosted_time_outs(database: Database) -> None:
    with database.connect() as connection:
        rows = connection.execute(
            "select rolname, setconfig from pg_db_role_setting join pg_roles r on r.oid = setrole"
            " where rolname in ('anon', 'authenticated') order by 1"
        ).fetchall()
    assert rows == [("anon", ["statement_timeout=3s"]), ("authenticated", ["statement_timeout=8s"])]


@pytest.mark.parametrize(
    "statement",
    [
        "alter table realtime.messages enable row level security",
        "alter table realtime.messages add column more integer",
        "drop table realtime.messages",
        "create table realtime.mine ()",
        "create table auth.mine ()",
        "update cron.job set active = false",
        "select * from vault.root_key",
        "insert into vault.secrets (secret) values ('x')",
    ],
)
def test_postgres_may_not_change_what_the_platform_owns(database: Database, statement: str) -> None:
    with database.connect("postgres") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


def test_postgres_may_write_policies_on_realtime_messages(database: Database) -> None:
    with database.connect("postgres") as connection:
        connection.execute("create policy listeners on realtime.messages for select to authenticated using (true)")
        connection.execute("drop policy listeners on realtime.messages")


@pytest.mark.parametrize("name", ["pg_cron", "supabase_vault", "pgcrypto", "pg_stat_statements", '"uuid-ossp"'])
def test_extension_lines_of_migrations_pass(database: Database, name: str) -> None:
    with database.connect("postgres") as connection:
        connection.execute(f"create extension if not exists {name}".encode())


def test_new_tables_are_open_by_default_as_in_old_projects(database: Database) -> None:
    with database.connect("postgres") as connection:
        connection.execute("create table public.opened ()")
        row = connection.execute("select has_table_privilege('anon', 'public.opened', 'select')").fetchone()
    assert row == (True,)


def test_a_broadcast_that_fails_is_a_warning(database: Database) -> None:
    notices: list[str] = []
    with database.connect("postgres") as connection:
        connection.add_notice_handler(lambda diag: notices.append(diag.message_primary or ""))
        connection.execute("""select realtime.send('[1]', 'e', 'a-topic')""")
        connection.execute("set role authenticated")
        connection.execute("""select realtime.send('{}', 'e', 'a-topic')""")
        connection.execute("reset role")
        assert connection.execute("select count(*) from realtime.messages where topic = 'a-topic'").fetchone() == (0,)
    assert len(notices) == 2
    assert all(notice.startswith("WarnSendingBroadcastMessage: ") for notice in notices)


def test_a_broadcast_gets_an_id(database: Database) -> None:
    with database.connect("postgres") as connection:
        connection.execute("""select realtime.send('{"a": 1}', 'e', 'with-id')""")
        row = connection.execute(
            "select payload ->> 'id' = id::text, private, extension from realtime.messages"
        ).fetchone()
    assert row == (True, True, "broadcast")


def test_a_changed_row_can_be_broadcast(database: Database) -> None:
    with database.connect("postgres") as connection:
        connection.execute("""
            create table public.probe_row (n integer);
            create function public.tell_probe() returns trigger language plpgsql as $$
            begin
              perform realtime.broadcast_changes('probe', tg_op, tg_op, tg_table_name, tg_table_schema, new, old);
              return new;
            end $$;
            create trigger tell after insert on public.probe_row for each row execute function public.tell_probe();
            insert into public.probe_row values (7);
        """)
        row = connection.execute("select payload - 'id' from realtime.messages where topic = 'probe'").fetchone()
    assert row is not None
    assert row[0] == {
        "old_record": None,
        "record": {"n": 7},
        "operation": "INSERT",
        "table": "probe_row",
        "schema": "public",
    }


def test_partitions_reach_from_yesterday_to_three_days_ahead(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("set role supabase_realtime_admin")
        connection.execute(
            "create table realtime.messages_2020_01_01 partition of realtime.messages"
            " for values from ('2020-01-01') to ('2020-01-02')"
        )
        connection.execute("select realtime.maintain_partitions()")
        rows = connection.execute(
            "select array_agg(inhrelid::regclass::text order by 1), (select array_agg('realtime.messages_'"
            " || to_char(now() at time zone 'utc' + n * interval '1 day', 'YYYY_MM_DD')) from generate_series(-1, 3) n)"
            " from pg_inherits where inhparent = 'realtime.messages'::regclass"
        ).fetchall()
    [(found, wanted)] = rows
    # the database may have been made before midnight: then one more is kept
    assert found[-5:] == wanted
    assert "realtime.messages_2020_01_01" not in found


def test_vault_keeps_secrets_encrypted(database: Database) -> None:
    with database.connect("postgres") as connection:
        connection.execute("select vault.create_secret('hush', 'a name')")
        row = connection.execute(
            "select decrypted_secret, secret from vault.decrypted_secrets where name = 'a name'"
        ).fetchone()
        assert row is not None
        assert row[0] == "hush"
        assert "hush" not in row[1]
        connection.execute("select vault.update_secret(id, 'whisper') from vault.secrets")
        row = connection.execute("select decrypted_secret from vault.decrypted_secrets").fetchone()
        assert row == ("whisper",)


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_users_do_not_see_the_vault(database: Database, role: str) -> None:
    with database.connect() as connection:
        connection.execute(f"set role {role}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select * from vault.decrypted_secrets")


def test_a_sealed_secret_cannot_be_moved_to_another_row(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("select vault.create_secret('one'), vault.create_secret('two')")
        connection.execute(
            "update vault.secrets set secret = (select max(secret) from vault.secrets),"
            " nonce = (select nonce from vault.secrets"
            " order by secret desc limit 1)"
        )
        with pytest.raises(psycopg.errors.DataCorrupted):
            connection.execute("select decrypted_secret from vault.decrypted_secrets").fetchall()


def test_cron_jobs_are_made_renewed_and_removed(database: Database) -> None:
    with database.connect("postgres") as connection:
        connection.execute("delete from cron.job_run_details")
        first = connection.execute("select cron.schedule('probe', '5 seconds', 'select 1')").fetchone()
        again = connection.execute("select cron.schedule('probe', '*/5 * * * *', 'select 2')").fetchone()
        assert first == again
        row = connection.execute(
            "select schedule, command, username, active from cron.job where jobname = 'probe'"
        ).fetchone()
        assert row == ("*/5 * * * *", "select 2", "postgres", True)
        assert connection.execute("select cron.unschedule('probe')").fetchone() == (True,)
        with pytest.raises(psycopg.Error, match="could not find valid entry"):
            connection.execute("select cron.unschedule('probe')")
        with pytest.raises(psycopg.Error, match="invalid schedule"):
            connection.execute("select cron.schedule('probe', '60 seconds', 'select 1')")


def test_claims_are_read_from_the_transaction(database: Database) -> None:
    user = "6f0b0000-0000-4000-8000-000000000001"
    with database.connect("postgres") as connection:
        connection.execute(
            "select set_config('request.jwt.claims', %s, false)",
            (json.dumps({"sub": user, "role": "authenticated", "email": "a@b.c"}),),
        )
        row = connection.execute("select auth.uid()::text, auth.role(), auth.email(), auth.jwt() ->> 'sub'").fetchone()
    assert row == (user, "authenticated", "a@b.c", user)
