"""What the API knows of the database between two changes of its schema: functions, tables and settings."""

import asyncio
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psycopg import AsyncConnection

from agent.stack.connection_pool import Sessions
from agent.stack.function_catalog import Catalog, Routine, read_catalog
from agent.stack.rest.refusal import Refused
from agent.stack.rest.relation import NO_SCHEMA, Schema
from agent.stack.rest.schema_reader import read_schema

SCHEMAS: Final = ("public",)
MAX_ROWS: Final = 1000
#: between two readings for requests that ask for something unknown
PAUSE_SECONDS: Final = 0.5

# `alter role authenticator set pgrst.…` configures hosted's API as well.
SETTINGS: Final = """
select pg_catalog.split_part(c, '=', 1), pg_catalog.substr(c, pg_catalog.strpos(c, '=') + 1)
from pg_catalog.pg_db_role_setting s join pg_catalog.pg_roles r on r.oid = s.setrole, pg_catalog.unnest(s.setconfig) c
where r.rolname = 'authenticator' and c like 'pgrst.%' and s.setdatabase in
  (0, (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database()))
order by s.setdatabase
"""


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Settings of the API. `schemas`: the exposed ones, the first is the default."""

    schemas: tuple[str, ...] = SCHEMAS
    max_rows: int = MAX_ROWS
    aggregates: bool = False
    plans: bool = False
    may_roll_back: bool = False


def configured(root: Path) -> ApiSettings:
    """The settings of section [api] in supabase/config.toml."""
    file = root / "supabase" / "config.toml"
    section = tomllib.loads(file.read_text()).get("api", {}) if file.exists() else {}
    # graphql_public is in every config.toml; the extension is absent here
    schemas = tuple(str(name) for name in section.get("schemas", SCHEMAS) if name != "graphql_public")
    return ApiSettings(schemas or SCHEMAS, int(section.get("max_rows", MAX_ROWS)))


class SchemaCache:
    """The current state; `refresh` reads it again."""

    def __init__(self, sessions: Sessions, settings: ApiSettings | None = None) -> None:
        self._sessions = sessions
        self._configured = settings or ApiSettings()
        self._reading = asyncio.Lock()
        self._missing = asyncio.Lock()
        #: when the last reading that ended well had begun
        self._known_at = 0.0
        self.settings = self._configured
        self.catalog = Catalog({}, {})
        self.schema: Schema = NO_SCHEMA

    async def refresh(self) -> None:
        """Read everything again. Raises DatabaseAway.

        Callers that wait while another reads share the next reading.
        """
        await self._refresh_since(time.monotonic())

    async def refresh_for_missing(self) -> None:
        """Read everything again because a request asked for something unknown: it may have been made a moment ago, and
        the notice of it still be on its way. Raises DatabaseAway.

        All who ask meanwhile share one reading, and there are at most two in a second: a guest can ask for unknown
        things as fast as it likes, and a reading holds the event loop for some milliseconds.
        """
        asked_at = time.monotonic()
        async with self._missing:
            wait = self._known_at + PAUSE_SECONDS - time.monotonic()
            if self._known_at <= asked_at and wait > 0:
                await asyncio.sleep(wait)
            await self._refresh_since(asked_at)

    async def _refresh_since(self, asked_at: float) -> None:
        """Return when a reading that began after this moment has ended well; otherwise read."""
        async with self._reading:
            if self._known_at > asked_at:
                return
            begun_at = time.monotonic()
            await self._read()
            self._known_at = begun_at

    async def _read(self) -> None:
        async with self._sessions.lease() as connection, connection.transaction():
            # every name is then given with its schema, and means the same in requests for any schema
            await connection.execute("set local search_path = ''")
            settings = await self._read_settings(connection)
            catalog = await read_catalog(connection, settings.schemas)
            schema = await read_schema(connection, settings.schemas)
            self.settings, self.catalog, self.schema = settings, catalog, schema

    async def routine(self, schema: str, name: str, names: frozenset[str] | None) -> Routine:
        """The function for a call. Raises Refused (PGRST202, PGRST203) and DatabaseAway."""
        try:
            return self.catalog.find(schema, name, names)
        except Refused as refused:
            if refused.code != "PGRST202":
                raise
        await self.refresh_for_missing()
        return self.catalog.find(schema, name, names)

    async def _read_settings(self, connection: AsyncConnection) -> ApiSettings:
        cursor = await connection.execute(SETTINGS)
        found: Mapping[str, str] = {str(name): str(text) for name, text in await cursor.fetchall()}
        rows = found.get("pgrst.db_max_rows", "")
        return ApiSettings(
            _list(found.get("pgrst.db_schemas", "")) or self._configured.schemas,
            int(rows) if rows.isdigit() else self._configured.max_rows,
            aggregates=found.get("pgrst.db_aggregates_enabled") == "true",
            plans=found.get("pgrst.db_plan_enabled") == "true",
            may_roll_back=found.get("pgrst.db_tx_end", "").endswith("allow-override"),
        )


def _list(text: str) -> tuple[str, ...]:
    names: Sequence[str] = [name.strip().strip('"') for name in text.split(",")]
    return tuple(name for name in names if name)
