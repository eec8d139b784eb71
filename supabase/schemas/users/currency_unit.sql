-- Operators say what a currency without a quote counts as.

-- {"currency", "counts_as", "amount"} -> the same: operators add, change or (counts_as null) remove a row.
create function private.set_currency_unit(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_currency text := upper(private.text_of(p_request, 'currency', 10));
  v_counts_as text := upper(private.text_of(p_request, 'counts_as', 10));
  v_amount numeric := coalesce(private.numeric_of(p_request, 'amount'), 1);
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'set_currency_unit', array['currency', 'counts_as', 'amount']);
  if coalesce(v_currency, '') !~ '^[A-Z0-9]{2,10}$' or v_counts_as !~ '^[A-Z0-9]{2,10}$' or v_currency = v_counts_as
    or v_amount <= 0 or v_amount > 1000000 then
    raise exception using errcode = 'TC001',
      message = 'set_currency_unit: currency and counts_as are two different codes of 2 to 10 letters and digits, '
        'amount is above 0 and at most 1000000',
      hint = 'For example {"currency": "USDT", "counts_as": "USD", "amount": "1"}; counts_as null removes the row.';
  end if;
  if exists (select from public.currency_units u where u.currency = v_counts_as)
    or v_counts_as is not null and exists (select from public.currency_units u where u.counts_as = v_currency) then
    raise exception using errcode = 'TC001',
      message = format('set_currency_unit: %s counts as %s, but one of them already stands between other currencies',
        v_currency, v_counts_as),
      hint = 'Name the currency that is quoted (USD, EUR, BTC) in counts_as; see the table currency_units.';
  end if;
  if v_counts_as is null then
    delete from public.currency_units where currency = v_currency;
    v_amount := null;
  else
    insert into public.currency_units as u (currency, counts_as, amount) values (v_currency, v_counts_as, v_amount)
    on conflict (currency) do update set counts_as = excluded.counts_as, amount = excluded.amount, assumed = true;
  end if;
  return jsonb_build_object('currency', v_currency, 'counts_as', v_counts_as, 'amount', private.plain(v_amount));
end $$;

create function public.set_currency_unit(p_request jsonb) returns jsonb
language sql security invoker set search_path = '' as $$ select private.set_currency_unit(p_request) $$;
comment on function public.set_currency_unit(jsonb) is
  'Operators: says what a currency counts as where no broker quotes it, or removes what was said.
Request:
- currency (text; required; 2 to 10 letters or digits): the currency, such as USDT
- counts_as (text; 2 to 10 letters or digits): the currency that it counts as; null or left out: removes the row
- amount (number; above 0, at most 1000000): how many units of it; left out: 1
Answer:
- currency (text): in capital letters
- counts_as (text or null): null: the row was removed
- amount (text or null): how many units
Errors: TC001 TC107 TC301
Example: {"currency": "USDT", "counts_as": "USD", "amount": "0.999"}
-> {"currency": "USDT", "counts_as": "USD", "amount": "0.999"}';
revoke all on function public.set_currency_unit(jsonb) from public, anon;
grant execute on function private.set_currency_unit(jsonb), public.set_currency_unit(jsonb)
to authenticated, service_role;
