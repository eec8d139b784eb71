"""An embedded Supabase Realtime: what the official Python and JavaScript clients need, on a plain Postgres.

`RealtimeServer` is the entry point; `verify` functions raise `TokenInvalid` or `TokenExpired`.
"""

from agent.stack.realtime.errors import TokenExpired, TokenInvalid
from agent.stack.realtime.faults import Faults, Rule
from agent.stack.realtime.limits import Limits
from agent.stack.realtime.server import RealtimeServer

__all__ = ["Faults", "Limits", "RealtimeServer", "Rule", "TokenExpired", "TokenInvalid"]
