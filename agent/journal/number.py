"""Whether the journal has another order under an execution number: a restored database gives out numbers again."""

import sqlite3
from datetime import timedelta
from typing import Final

from agent.journal.rows import UnreadableRow, execution_of
from agent.model import Execution

#: restoring a database takes at least this long
RESTORED_WITHIN: Final = timedelta(seconds=2)


def order_under(connection: sqlite3.Connection, execution: Execution) -> Execution | None:
    """Another order under the same number, or None. An unreadable row does not count as another order."""
    sql = "select cast(body as blob), attempt from executions where execution_id = ? order by attempt desc limit 1"
    row = connection.execute(sql, (execution.id,)).fetchone()
    if row is None:
        return None
    try:
        known = execution_of(row[0], execution.id, row[1])
    except UnreadableRow:
        return None
    return None if is_same_order(known, execution) else known


def is_same_order(one: Execution, other: Execution) -> bool:
    """Compares the fields that neither a new attempt nor changed limits alter."""
    names = ("account_id", "link_id", "lane", "step_id", "action", "symbol", "side", "order_type")
    if any(getattr(one, name) != getattr(other, name) for name in names):
        return False
    # A restored database also reuses link numbers: then only the time of the master's trade distinguishes two orders.
    if one.attempt != other.attempt or one.detected_at is None or other.detected_at is None:
        return True
    return abs(one.detected_at - other.detected_at) < RESTORED_WITHIN
