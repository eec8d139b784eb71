-- Points: what the smallest step of a price is worth, kept with every fill so that its slippage reads the same for ever.

-- Size of a point of a symbol, and what one point of one lot is worth in the account's currency now. Null: not known. Where the symbol's
-- profit is in the account's own currency, which is the rule, no rate is looked for. p_filled: nothing filled, nothing to know.
create function private.point_worth(p_account uuid, p_currency text, p_symbol text, p_filled numeric, out size numeric, out money numeric)
language plpgsql stable security definer set search_path = '' as $$
declare
  s public.account_symbols;
begin
  if coalesce(p_filled, 0) = 0 then return; end if;
  select * into s from public.account_symbols x where x.account_id = p_account and x.name = p_symbol;
  size := 10::numeric ^ (-s.digits);
  money := size * s.contract_size * case when s.profit_currency = p_currency then 1
    else private.exchange_rate(s.profit_currency, p_currency, private.quoted_rates(array[p_account], array[s.profit_currency, p_currency])) end;
end $$;
