-- Crypto currencies: their markets never close, so silence at the weekend tells of a fault.

create table public.crypto_currencies (
  currency text primary key,
  word text,
  constraint currencies_are_codes check (currency ~ '^[A-Z0-9]{2,10}$' and word ~ '^[A-Z]{4,20}$')
);
comment on table public.crypto_currencies is
  'Crypto currencies. A symbol of one trades at weekends, until a weekend was watched in which it stood still.';
comment on column public.crypto_currencies.currency is 'The code, as brokers write it, in capital letters.';
comment on column public.crypto_currencies.word is
  'A word for it that stands in the names of symbols (BITCOIN), in capital letters; null: none.';
alter table public.crypto_currencies enable row level security;
create policy "crypto currencies are no secret" on public.crypto_currencies for select to authenticated using (true);
grant select on public.crypto_currencies to authenticated, service_role;

insert into public.crypto_currencies (currency, word) values
  ('BTC', 'BITCOIN'), ('XBT', null), ('ETH', 'ETHEREUM'), ('LTC', 'LITECOIN'), ('XRP', 'RIPPLE'), ('BCH', null),
  ('BSV', null), ('ETC', null), ('DOGE', 'DOGECOIN'), ('SHIB', null), ('PEPE', null), ('BONK', null),
  ('ADA', 'CARDANO'),
  ('SOL', 'SOLANA'), ('DOT', 'POLKADOT'), ('AVAX', 'AVALANCHE'), ('MATIC', 'POLYGON'), ('POL', null),
  ('LINK', 'CHAINLINK'), ('UNI', 'UNISWAP'), ('ATOM', 'COSMOS'), ('XLM', 'STELLAR'), ('XMR', 'MONERO'),
  ('ZEC', 'ZCASH'), ('DASH', null), ('NEO', null), ('EOS', null), ('IOTA', null), ('TRX', 'TRON'), ('XTZ', 'TEZOS'),
  ('ALGO', 'ALGORAND'), ('FIL', 'FILECOIN'), ('AAVE', null), ('BNB', 'BINANCE'), ('TON', 'TONCOIN'), ('SUI', null),
  ('APT', null), ('ARB', 'ARBITRUM'), ('NEAR', null), ('ICP', null), ('HBAR', 'HEDERA'), ('VET', 'VECHAIN'),
  ('XEM', null), ('QTUM', null), ('SUSHI', null), ('COMP', null), ('MKR', null), ('GRT', null), ('SAND', null),
  ('MANA', null), ('AXS', null), ('CRV', null), ('RUNE', null), ('INJ', null), ('FTM', null), ('TIA', null),
  ('WIF', null), ('HYPE', null), ('LDO', null), ('IMX', null), ('STX', null), ('EGLD', null), ('KSM', null),
  ('USDT', 'TETHER'), ('USDC', null), ('BUSD', null), ('FDUSD', null), ('TUSD', null), ('DAI', null), ('WBTC', null);

-- Whether a symbol's name, or one of its currencies, is of a crypto currency: BTCUSD, ETHBTC.x, #Bitcoin, XRP/EUR. In
-- doubt it is one: then silence is told. But USDCAD only begins as USDC does, and XPTUSD only ends as TUSD does.
create function private.is_crypto(p_name text, p_currencies text[]) returns boolean
language plpgsql stable security definer set search_path = '' as $$
declare
  v_name text := regexp_replace(upper(p_name), '[^A-Z0-9]', '', 'g');
  v_money text := '(USD|EUR|GBP|JPY|AUD|CAD|CHF|NZD|SGD|HKD|TRY|ZAR|BRL|INR|KRW|CNH|CNY|MXN|SEK|NOK|DKK|PLN|CZK|HUF|'
    'RON|THB|ILS|RUB|CLP|COP|TWD|IDR|XAU|XAG|XPT|XPD)';
begin
  return exists (
    select from public.crypto_currencies c
    where c.currency = any (p_currencies) or position(c.word in v_name) > 0
      or starts_with(v_name, c.currency) and v_name !~ ('^' || v_money || v_money)
      -- quoted in a stablecoin
      or c.currency like '%USD%' and c.currency not like '_USD' and right(v_name, length(c.currency)) = c.currency
      or v_name ~ (c.currency || '(USD|EUR|GBP|JPY|AUD|CAD|CHF|NZD|SGD|HKD|TRY|ZAR|BRL|INR|KRW|BTC|ETH)'));
end $$;
comment on function private.is_crypto(text, text[]) is
  'Whether a symbol (its name, its profit and margin currency) is of a crypto currency.';
