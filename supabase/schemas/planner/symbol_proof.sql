-- Proof by price: before the first trade under another name the prices of both symbols must agree within 5 %.

-- Why the prices do not show that the follower's symbol is the master's; null: they agree. p_price: the price of the
-- master's trade, which counts where its symbol has no current quote.
create function private.price_doubt(p_master public.account_symbols, p_symbol public.account_symbols, p_price numeric,
  p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_master numeric := case when private.quote_is_fresh(p_master, p_now) then (p_master.bid + p_master.ask) / 2
    else p_price end;
  v_follower numeric := (p_symbol.bid + p_symbol.ask) / 2;
begin
  if not private.quote_is_fresh(p_symbol, p_now) then
    return format('%s seems to be the follower''s name for %s, but there is no current quote of it that proves it.',
      p_symbol.name, p_master.name);
  end if;
  if abs(v_master - v_follower) <= 0.05 * least(abs(v_master), abs(v_follower)) then return null; end if;
  return format('%s seems to be the follower''s name for %s, but its price is %s, the master''s %s.', p_symbol.name,
    p_master.name, private.plain(v_follower), coalesce(private.plain(v_master), 'unknown'));
end $$;

-- symbol_unproven if current quotes of both do not prove that the follower's symbol of another name is the master's;
-- symbols_loading if such quotes are missing; null: they did once, or do now. The symbols of an unproven choice are
-- watched (planner/watch.sql), so that quotes arrive.
create function private.proof_refusal(p_master public.account_symbols, p_symbol public.account_symbols,
  p_price numeric, p_now timestamptz) returns text
language plpgsql volatile security definer set search_path = '' as $$
begin
  if exists (select from private.symbol_choices c
    where c.follower_account_id = p_symbol.account_id and c.master_account_id = p_master.account_id
      and c.master_symbol = p_master.name and c.follower_symbol = p_symbol.name and c.proven) then
    return null;
  end if;
  if private.price_doubt(p_master, p_symbol, p_price, p_now) is not null then
    return case when private.quote_is_fresh(p_symbol, p_now) and private.quote_is_fresh(p_master, p_now)
      then 'symbol_unproven' else 'symbols_loading' end;
  end if;
  update private.symbol_choices c set proven = true
  where c.follower_account_id = p_symbol.account_id and c.master_account_id = p_master.account_id
    and c.master_symbol = p_master.name and c.follower_symbol = p_symbol.name;
  return null;
end $$;

-- The symbol without its quote, which is too old to value anything by.
create function private.unquoted(p_symbol public.account_symbols) returns public.account_symbols
language plpgsql immutable set search_path = '' as $$
begin
  p_symbol.bid := null;
  p_symbol.ask := null;
  return p_symbol;
end $$;
