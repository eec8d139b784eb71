"""The table `refused` of the journal: events and reports that the database did not take, kept for a person to read.

Nothing reads them again. What they told reaches the database by another way: a snapshot of the account, or the same
report without its texts.
"""

import sqlite3
from datetime import UTC, datetime
from typing import Final, Literal

Kind = Literal["event", "report"]

TABLE: Final = (
    "create table if not exists refused (at text not null, account_id text not null, kind text not null, "
    "reason text not null, body text not null)"
)
#: the newest rows that are kept
ROWS_MAX: Final = 1_000


def keep(connection: sqlite3.Connection, account_id: str, kind: Kind, reason: str, body: str) -> None:
    """Store one refused item (`body`: its JSON) and forget the oldest beyond `ROWS_MAX`."""
    connection.execute(
        "insert into refused values (?, ?, ?, ?, ?)", (datetime.now(UTC).isoformat(), account_id, kind, reason, body)
    )
    connection.execute("delete from refused where rowid <= (select max(rowid) from refused) - ?", (ROWS_MAX,))
