-- Currencies that are another one's cents, thousandths or stand-in: accounts and symbols are kept in them, but few
-- brokers quote them.

create table public.currency_units (
  currency text primary key,
  counts_as text not null,
  amount numeric not null,
  assumed boolean not null default true,
  constraint currencies_are_codes check (currency ~ '^[A-Z0-9]{2,10}$' and counts_as ~ '^[A-Z0-9]{2,10}$'),
  constraint no_currency_counts_as_itself check (currency <> counts_as),
  constraint amount_is_in_range check (amount > 0 and amount <= 1000000)
);
comment on table public.currency_units is
  'What a currency counts as where no broker quotes it: USC is 0.01 USD, USDT 1 USD. Operators change it with '
  'set_currency_unit.';
comment on column public.currency_units.currency is 'the currency, as brokers write it, in capital letters';
comment on column public.currency_units.counts_as is 'the currency that it counts as; it has no row of its own';
comment on column public.currency_units.amount is 'how many units of that currency one unit of this one is';
comment on column public.currency_units.assumed is
  'true: its value may move (a stablecoin), so a size that depends on it says so; false: it is the same money (cents)';

alter table public.currency_units enable row level security;
create policy "units are no secret" on public.currency_units for select to authenticated using (true);
grant select on public.currency_units to authenticated, service_role;

insert into public.currency_units (currency, counts_as, amount, assumed) values
  ('USC', 'USD', 0.01, false), ('EUC', 'EUR', 0.01, false), ('GBC', 'GBP', 0.01, false),
  ('GBX', 'GBP', 0.01, false), ('ZAC', 'ZAR', 0.01, false),
  ('RUR', 'RUB', 1, false), ('XBT', 'BTC', 1, false),
  ('MBT', 'BTC', 0.001, false), ('MBTC', 'BTC', 0.001, false), ('UBT', 'BTC', 0.000001, false),
  ('UBTC', 'BTC', 0.000001, false),
  ('USDT', 'USD', 1, true), ('USDC', 'USD', 1, true), ('BUSD', 'USD', 1, true), ('FDUSD', 'USD', 1, true),
  ('TUSD', 'USD', 1, true), ('GUSD', 'USD', 1, true), ('PYUSD', 'USD', 1, true), ('RLUSD', 'USD', 1, true),
  ('USDP', 'USD', 1, true), ('USDD', 'USD', 1, true), ('USDE', 'USD', 1, true), ('USD1', 'USD', 1, true),
  ('DAI', 'USD', 1, true), ('EURT', 'EUR', 1, true), ('EURC', 'EUR', 1, true), ('EURS', 'EUR', 1, true);
