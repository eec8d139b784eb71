-- Aliases: the names of one instrument at different brokers.

-- Different brokers' names for the same instrument.
create table public.symbol_aliases (
  name text primary key,
  instrument text not null,
  constraint names_are_roots check (name ~ '^[A-Z0-9]{1,20}$' and instrument ~ '^[A-Z0-9]{1,20}$')
);
comment on table public.symbol_aliases is
  'Names of one instrument at different brokers, without prefix and suffix; rows of a group have the same instrument.';
comment on column public.symbol_aliases.name is 'A name, in upper case and without the broker''s prefix and suffix.';
comment on column public.symbol_aliases.instrument is 'The instrument that it names: one of the names of the group.';

-- the planner: all names of an instrument
create index symbol_aliases_of_instrument on public.symbol_aliases (instrument);
alter table public.symbol_aliases enable row level security;
create policy "aliases are no secret" on public.symbol_aliases for select to authenticated using (true);
grant select on public.symbol_aliases to authenticated, service_role;

insert into public.symbol_aliases (instrument, name)
select g.names[1], unnest(g.names) from (values
  (array['XAUUSD', 'GOLD']), (array['XAGUSD', 'SILVER']), (array['XPTUSD', 'PLATINUM']), (array['XPDUSD', 'PALLADIUM']),
  (array['XCUUSD', 'COPPER']),
  (array['US30', 'DJ30', 'WS30', 'DJI30', 'DJIA30', 'DOW30', 'USA30', 'WALLSTREET30']),
  (array['NAS100', 'USTEC', 'US100', 'NDX100', 'NASDAQ100', 'USTECH100', 'UT100', 'USTECH']),
  (array['SPX500', 'US500', 'SP500', 'USA500']), (array['US2000', 'RUSSELL2000', 'RUS2000']),
  (array['GER40', 'DE40', 'DAX40', 'GER30', 'DE30', 'DAX30', 'GDAXI', 'DAX']),
  (array['UK100', 'FTSE100', 'GB100', 'FTSE']), (array['JP225', 'JPN225', 'NI225', 'NIKKEI225', 'NIKKEI']),
  (array['FRA40', 'FR40', 'CAC40']), (array['EU50', 'STOXX50', 'EUSTX50', 'ESTX50', 'EURO50', 'STX50']),
  (array['ESP35', 'ES35', 'IBEX35', 'SPA35']), (array['AUS200', 'AU200', 'ASX200']),
    (array['HK50', 'HKG50', 'HSI50', 'HSI']),
  (array['WTI', 'USOIL', 'XTIUSD']), (array['BRENT', 'UKOIL', 'XBRUSD']), (array['NATGAS', 'NGAS', 'XNGUSD']),
  (array['BTCUSD', 'BITCOIN']), (array['ETHUSD', 'ETHEREUM']), (array['LTCUSD', 'LITECOIN']),
    (array['XRPUSD', 'RIPPLE'])
) as g (names);
