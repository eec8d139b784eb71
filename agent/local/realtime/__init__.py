"""An embedded Supabase Realtime: what the official Python and JavaScript clients need, on a plain Postgres.

`RealtimeServer` is the entry point; `verify` functions raise `TokenInvalid` or `TokenExpired`.
"""

from agent.local.realtime.errors import TokenExpired, TokenInvalid
from agent.local.realtime.faults import Faults, Rule
from agent.local.realtime.limits import Limits
from agent.local.realtime.server import RealtimeServer

__all__ = ["Faults", "Limits", "RealtimeServer", "Rule", "TokenExpired", "TokenInvalid"]
