-- Sizes that are cut after the settings gave them.

-- The orders of a size, at most this volume in all; the last ones are cut first. What is left of one is no order if it
-- is below the smallest volume.
create function private.orders_up_to(p_orders numeric[], p_lots numeric, p_min numeric) returns numeric[]
language sql immutable set search_path = '' as $$
  select coalesce(array_agg(least(x.lots, p_lots - x.before) order by x.n), '{}')
  from (
    select o.lots, o.n, sum(o.lots) over (order by o.n) - o.lots as before
    from unnest(p_orders) with ordinality as o (lots, n)
  ) x
  where p_lots - x.before >= p_min
$$;

-- The size of a copy that was decided later than its master's trade: what p_then lots of the master give, cut to the
-- share of the p_now that it has left. As in a reduction the last of a copy is never taken.
create function private.share_left(p_size private.sizing, p_then numeric, p_now numeric, s public.account_symbols)
returns private.sizing
language plpgsql immutable set search_path = '' as $$
declare
  v_lots numeric := (select sum(o) from unnest(p_size.orders) o);
  v_left numeric := private.target_lots(v_lots, p_now, p_then, s.lots_step, s.lots_min, v_lots);
begin
  if p_size.reason is not null or v_left = v_lots then return p_size; end if;
  p_size.orders := private.orders_up_to(p_size.orders, v_left, s.lots_min);
  p_size.explain := p_size.explain || format('Until the decision the master has reduced that to %s lots: %s lots.',
    private.plain(p_now), private.plain(v_left));
  return p_size;
end $$;
