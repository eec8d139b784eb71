-- Symbols: which symbol of a follower corresponds to a symbol of the master, and why one does not fit.

-- The prefix and suffix that an account's broker adds to symbol names, learned from well-known names: those on most of
-- them, and on at least two; proven: on at least five. Dates are no suffixes. Stored with the account, so that the
-- planner need not read its whole list.
create function private.learn_affixes() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if not exists (select from new_symbols) then return null; end if;  -- every report of quotes runs this trigger
  update public.trading_accounts a
  set symbol_prefix = f.prefix, symbol_suffix = f.suffix, symbol_affix_proven = f.proven
  from (
    select distinct on (x.account_id) x.account_id, case
      when x.roots > 1 and x.roots * 2 > x.all_roots then x.prefix else '' end as prefix,
      case when x.roots > 1 and x.roots * 2 > x.all_roots then x.suffix else '' end as suffix,
      x.roots >= 5 and x.roots * 2 > x.all_roots as proven
    from (
      select s.account_id, left(s.name, at - 1) as prefix, substr(s.name, at + length(root)) as suffix,
        count(*) as roots, sum(count(*)) over (partition by s.account_id) as all_roots
      from public.account_symbols s
      cross join lateral (select coalesce(private.pair_in(s.name), private.symbol_root(s.name))) r (root)
      cross join lateral (select strpos(upper(s.name), r.root)) p (at)
      where s.account_id in (select n.account_id from new_symbols n)
        -- a case, because dates are looked for in known names only: a list may have 10,000
        and case when at > 0
          and (private.pair_in(root) is not null or root in (select known.name from public.symbol_aliases known))
          then private.contract_date(substr(s.name, at), extract(year from now())::integer) is null else false end
      group by s.account_id, 2, 3
    ) x
    order by x.account_id, x.roots desc, x.prefix, x.suffix
  ) f
  where a.id = f.account_id and (a.symbol_prefix, a.symbol_suffix, a.symbol_affix_proven)
    is distinct from (f.prefix, f.suffix, f.proven);
  perform private.forget_choices(array(select distinct n.account_id from new_symbols n));
  return null;
end $$;
create trigger learn_affixes after insert on public.account_symbols
  referencing new table as new_symbols for each statement execute function private.learn_affixes();

-- Why a follower's symbol may not be used for the master's unless the user says so; null: nothing speaks against it.
-- A symbol of the same name may have another contract size, within limits (sizes are aligned); one of another name may
-- not.
create function private.misfit(p_master public.account_symbols, p_symbol public.account_symbols) returns text
language plpgsql stable set search_path = '' as $$
declare
  m public.account_symbols := p_master;
  s public.account_symbols := p_symbol;
  v_prices boolean := abs(extract(epoch from m.quoted_at - s.quoted_at)) < 86400;
begin
  if m.profit_currency <> s.profit_currency
    -- a currency and its cents are the same money
    and (m.name <> s.name or private.exchange_rate(m.profit_currency, s.profit_currency, '{}') is null) then
    return format('its profit is in %s, the master''s in %s', s.profit_currency, m.profit_currency);
  end if;
  if v_prices and not (s.bid < m.bid * 1.5 and m.bid < s.bid * 1.5) then
    return format('its price is %s, the master''s %s', trim_scale(s.bid), trim_scale(m.bid));
  end if;
  if m.contract_size <> s.contract_size and (m.name <> s.name or v_prices is not true
    and private.pair_in(s.name) is null
    and greatest(m.contract_size, s.contract_size) > 50 * least(m.contract_size, s.contract_size)) then
    return format('one lot of it is %s units, of the master''s %s', trim_scale(s.contract_size),
      trim_scale(m.contract_size));
  end if;
  return null;
end $$;

-- A copier's mapping of a master's symbol, without regard to case and surrounding blanks.
create function private.mapping_of(p_copier uuid, p_symbol text) returns public.symbol_mappings
language sql stable security definer set search_path = '' as $$
  select y from public.symbol_mappings y where y.copier_id = p_copier and y.master_key = upper(btrim(p_symbol))
$$;

-- An account's symbol of this name; if there is none, of this name without regard to case and surrounding blanks.
create function private.symbol_named(p_account uuid, p_name text) returns public.account_symbols
language sql stable security definer set search_path = '' as $$
  select s from public.account_symbols s
  where private.symbol_root(s.name) = private.symbol_root(btrim(p_name)) and s.account_id = p_account
    and upper(s.name) = upper(btrim(p_name))
  order by s.name <> p_name, s.name limit 1
$$;

-- All names of the instrument behind a master's symbol, without prefix and suffix; the symbol's own name first.
create function private.names_of(p_master public.account_symbols) returns text[]
language plpgsql stable security definer set search_path = '' as $$
declare
  a public.trading_accounts;
  v_name text := p_master.name;
  v_root text;
begin
  select * into a from public.trading_accounts where id = p_master.account_id;
  if a.symbol_prefix || a.symbol_suffix <> '' and starts_with(v_name, a.symbol_prefix)
    and right(v_name, length(a.symbol_suffix)) = a.symbol_suffix
      and length(v_name) > length(a.symbol_prefix || a.symbol_suffix) then
    v_name := substr(v_name, length(a.symbol_prefix) + 1, length(v_name) - length(a.symbol_prefix || a.symbol_suffix));
  end if;
  v_root := private.symbol_root(v_name);
  return v_root || array(
    select o.name from public.symbol_aliases i join public.symbol_aliases o on o.instrument = i.instrument
    where i.name = v_root and o.name <> v_root order by o.name);
end $$;

-- A follower's candidates for the master's symbol, best rank first: 1 = the root with the broker's usual prefix and
-- suffix, 2 = the root without them, 3 = another name of the instrument with them, 4 = without. misfit: why the
-- candidate may not be used.
create function private.symbol_candidates(p_follower public.trading_accounts, p_master public.account_symbols)
returns table (name text, rank integer, tradable boolean, misfit text)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_names text[] := private.names_of(p_master);
  v_usual text[] := array(select p_follower.symbol_prefix || n || p_follower.symbol_suffix
    from unnest(v_names || p_master.name) n);
  v_meanings text[] := (select private.meanings(p_master.name, a) from public.trading_accounts a
    where a.id = p_master.account_id);
begin
  return query
  select s.name, case when upper(s.name) = upper(v_usual[1]) then 1 when private.symbol_root(s.name) = v_names[1] then 2
      when upper(s.name) = any (select upper(u) from unnest(v_usual) u) then 3 else 4 end,
    s.trade_mode not in ('close_only', 'disabled'),
    coalesce(private.name_misfit(p_master.name, v_meanings, s.name, p_follower), private.misfit(p_master, s))
  from (
    select * from public.account_symbols x
    where private.symbol_root(x.name) = any (v_names) and x.account_id = p_follower.id
    union
    select * from public.account_symbols x where x.account_id = p_follower.id and x.name = any (v_usual)
  ) s
  order by 2, 1;
end $$;

-- The follower's symbol for the master's if the user has not chosen one: the symbol of the same name, else of the same
-- root (with several, the one with the broker's usual prefix and suffix), else under another name of the instrument.
-- Null: there is none, there are several, or it may be a different instrument. The planner does not call this if a
-- symbol has the same name and figures (planner/decision.sql).
create function private.follower_symbol(p_follower public.trading_accounts,
  p_master public.account_symbols) returns public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  v_symbol public.account_symbols;
  v_names text[];
begin
  if p_master.contract_size is null then return null; end if;
  -- of half a list, only the same name serves: the right symbol may be in the other half
  if not p_follower.symbols_complete then
    select * into v_symbol from public.account_symbols s
    where s.account_id = p_follower.id and s.name = p_master.name;
    if private.misfit(p_master, v_symbol) is not null then return null; end if;
    return v_symbol;
  end if;
  -- a namesake that may only be closed is still the instrument: no other takes its place
  select * into v_symbol from public.account_symbols s
  where s.account_id = p_follower.id and s.name = p_master.name and s.trade_mode = 'close_only';
  if v_symbol.name is not null and private.misfit(p_master, v_symbol) is null then return v_symbol; end if;
  -- among candidates that fit: tradable ones first, then the same name, then by rank
  select array_agg(f.name) into v_names from (
    select c.name, dense_rank() over (order by c.tradable desc, c.name <> p_master.name, c.rank) as place
    from private.symbol_candidates(p_follower, p_master) c where c.misfit is null
  ) f where f.place = 1;
  if cardinality(v_names) = 1 then
    select * into v_symbol from public.account_symbols s where s.account_id = p_follower.id and s.name = v_names[1];
    -- the same name with another contract size, beside another symbol that fits: only the user can tell
    if v_symbol.contract_size <> p_master.contract_size and exists (
      select 1 from private.symbol_candidates(p_follower, p_master) c
      join public.account_symbols s on s.account_id = p_follower.id and s.name = c.name
      where c.misfit is null and c.tradable and s.name <> v_symbol.name) then
      return null;
    end if;
    return v_symbol;
  end if;
  return null;
end $$;

-- The last results of follower_symbol(): searching a broker's names costs ten times as much as a look-up.
create table private.symbol_choices (
  follower_account_id uuid not null references public.trading_accounts (id) on delete cascade,
  master_account_id uuid not null references public.trading_accounts (id) on delete cascade,
  master_symbol text not null,
  follower_symbol text not null,
  proven boolean not null default false,
  primary key (follower_account_id, master_account_id, master_symbol)
);
comment on table private.symbol_choices is
  'The follower''s symbol last found for a symbol of the master. Deleted when symbols of either account are added or '
  'change, and when a name of an instrument changes. proven: the prices of both agreed.';
create index symbol_choices_of_master on private.symbol_choices (master_account_id);
alter table private.symbol_choices enable row level security;

create function private.forget_choices(p_accounts uuid[]) returns void
language plpgsql security definer set search_path = '' as $$
begin
  delete from private.symbol_choices where follower_account_id = any (p_accounts);
  delete from private.symbol_choices where master_account_id = any (p_accounts);
end $$;

create function private.forget_choices_of_symbol() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  perform private.forget_choices(array[new.account_id]);
  return null;
end $$;
create trigger forget_choices after update on public.account_symbols for each row
  when ((old.contract_size, old.profit_currency, old.trade_mode) is distinct from (new.contract_size,
    new.profit_currency, new.trade_mode))
  execute function private.forget_choices_of_symbol();

-- follower_symbol() with a cache. A cached symbol must still fit.
create function private.choose_symbol(p_follower public.trading_accounts,
  p_master public.account_symbols) returns public.account_symbols
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_symbol public.account_symbols;
begin
  select s.* into v_symbol from private.symbol_choices c
  join public.account_symbols s on s.account_id = c.follower_account_id and s.name = c.follower_symbol
  where c.follower_account_id = p_follower.id and c.master_account_id = p_master.account_id
    and c.master_symbol = p_master.name;
  if v_symbol.name is not null and private.misfit(p_master, v_symbol) is null then
    return v_symbol;
  end if;
  v_symbol := private.follower_symbol(p_follower, p_master);
  if v_symbol.name is not null then
    insert into private.symbol_choices (follower_account_id, master_account_id, master_symbol, follower_symbol)
    values (p_follower.id, p_master.account_id, p_master.name, v_symbol.name)
    on conflict (follower_account_id, master_account_id,
      master_symbol) do update set follower_symbol = excluded.follower_symbol, proven = false;
  end if;
  return v_symbol;
end $$;
