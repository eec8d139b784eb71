-- Dated contracts: names that end with the date on which the contract ends.

-- Whether digits are a date whose year lies between the two: year, month and day, or year and month, in any usual
-- order.
create function private.digits_are_date(p_digits text, p_first_year integer, p_last_year integer) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return exists (
    select 1 from (values
      (8, 1, 4, 5, 7), (8, 5, 4, 3, 1), (8, 5, 4, 1, 3), (6, 1, 2, 3, 5), (6, 5, 2, 3, 1), (6, 5, 2, 1, 3),
      (6, 1, 4, 5, 0), (6, 3, 4, 1, 0), (4, 1, 2, 3, 0), (4, 3, 2, 1, 0)
    ) form (length, year_at, year_digits, month_at, day_at)
    cross join lateral (select substr(p_digits, form.year_at, form.year_digits)::integer
      + case form.year_digits when 2 then 2000 else 0 end) y (year)
    where form.length = length(p_digits) and y.year between p_first_year and p_last_year
      and substr(p_digits, form.month_at, 2)::integer between 1 and 12
      and (form.day_at = 0 or substr(p_digits, form.day_at, 2)::integer between 1 and 31));
end $$;

-- Whether a year of one, two or four digits lies between last year and three years ahead of p_year.
create function private.year_is_near(p_digits text, p_year integer) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return case length(p_digits)
    when 1 then exists (select 1 from generate_series(p_year - 1, p_year + 3) y where y % 10 = p_digits::integer)
    when 2 then 2000 + p_digits::integer between p_year - 1 and p_year + 3
    when 4 then p_digits::integer between p_year - 1 and p_year + 3
    else false end;
end $$;

-- The date at the end of p_name, which is in upper case, without separators: DEC25 for US30-DEC-25; null: there is
-- none.
create function private.date_at_end(p_name text, p_year integer) returns text
language plpgsql immutable set search_path = '' as $$
declare
  v_month constant text := '(?:JAN(?:UARY)?|FEB(?:RUARY)?|MAR(?:CH)?|APR(?:IL)?|MAY|JUNE?|JULY?|AUG(?:UST)?'
    '|SEP(?:T(?:EMBER)?)?|OCT(?:OBER)?|NOV(?:EMBER)?|DEC(?:EMBER)?)';
  v_odd constant text := '[^A-Z0-9]*';
  v_end text;
begin
  -- after a separator: a month, or a month letter or quarter with a year
  v_end := coalesce(
    substring(p_name from '[^A-Z0-9]((?:\d{1,4}' || v_odd || ')?' || v_month || '(?:' || v_odd || '\d{1,4})?)$'),
    substring(p_name from '[^A-Z0-9]((?:[FGHJKMNQUVXZ]|Q[1-4]|[1-4]Q)' || v_odd || '(?:\d\d|\d{4}))$'),
    substring(p_name from '[^A-Z0-9]((?:\d\d|\d{4})' || v_odd || '(?:Q[1-4]|[1-4]Q))$'),
    substring(p_name from '[^A-Z0-9]((?:19|20)\d\d)$'),
    substring(p_name from '[^A-Z0-9](FUT|FT|FWD|FUTURES?)$'));
  if v_end is not null then return regexp_replace(v_end, '[^A-Z0-9]', '', 'g'); end if;
  v_end := regexp_replace(substring(p_name from
    '[^A-Z0-9](\d{4}|\d{6}|\d{8}|\d\d[^A-Z0-9]\d\d(?:[^A-Z0-9]\d\d|[^A-Z0-9]\d{4})?'
    '|\d{4}[^A-Z0-9]\d\d(?:[^A-Z0-9]\d\d)?)$'), '[^0-9]', '', 'g');
  if private.digits_are_date(v_end, case length(v_end) when 4 then p_year - 1 else 1990 end,
    case length(v_end) when 4 then p_year + 3 else 2099 end) then
    return v_end;
  end if;
  v_end := substring(p_name from '[^A-Z0-9]([FGHJKMNQUVXZ]?\d\d?)$');
  if v_end ~ '[A-Z]|\d\d' and private.year_is_near(regexp_replace(v_end, '[A-Z]', ''), p_year) then
    return v_end;
  end if;
  -- without one the year must be near
  v_end := coalesce(substring(p_name from '.(' || v_month || '(?:\d\d|\d{4}))$'),
    substring(p_name from '.((?:Q[1-4]|[1-4]Q|[FGHJKMNQUVXZ])(?:\d{4}|\d\d?))$'));
  if private.year_is_near(substring(v_end from '(\d{4}|\d\d?)$'), p_year) then return v_end; end if;
  v_end := substring(p_name from '.(\d{6})$');
  if private.digits_are_date(substring(p_name from '.(\d{8})$'), p_year - 1, p_year + 3)
    or private.digits_are_date(v_end, p_year - 1, p_year + 3) then
    return coalesce(substring(p_name from '.(\d{8})$'), v_end);
  end if;
  return substring(p_name from '..(' || v_month || ')$');
end $$;

-- The date in a symbol's name, without separators and before an affix such as ".r" or "m"; null: it is no dated
-- contract. A lone year of two digits before letters is none: GER40.24h.
create function private.contract_date(p_name text, p_year integer) returns text
language plpgsql immutable set search_path = '' as $$
declare
  v_name text := upper(btrim(p_name));
  v_date text := coalesce(private.date_at_end(v_name, p_year),
    private.date_at_end(substring(v_name from '^(.*[^._#!+-])[._#!+-]+[A-Z]{0,6}[._#!+-]*$'), p_year));
begin
  if v_date is null then
    v_date := private.date_at_end(substring(v_name from '^(.*\d)[A-Z]{1,4}[._#!+-]*$'), p_year);
    if v_date ~ '^\d{1,2}$' then v_date := null; end if;
  end if;
  return v_date;
end $$;
