-- Turns: each part of the upkeep runs at most once at a time, and not too often.

-- A turn lasts until the transaction ends; false: another transaction has it.
create function private.take_turn(p_name text) returns boolean
language sql
set search_path = ''
as $$ select pg_try_advisory_xact_lock(hashtextextended('tradecopier.' || p_name, 0)) $$;
comment on function private.take_turn(text) is
  'Whether the caller may run this part of the clockwork now; the turn ends with its transaction.';

create function private.is_due(p_name text, p_every interval) returns boolean
language sql
set search_path = ''
as $$ select c.last_run_at not between clock_timestamp() - p_every and clock_timestamp() from private.clockwork c
  where c.name = p_name $$;
comment on function private.is_due(text, interval) is
  'Whether this part of the clockwork last ran longer than p_every ago, or in the future (the clock was set back).';
