-- What the setting weekend may be: when the markets that rest at the end of the week are closed. Its row stands in
-- trade/weekend_watch.sql.

create function private.weekend_error(p_value jsonb) returns text
language plpgsql stable
set search_path = ''
as $$
declare
  v_keys text[] := array['weekday', 'time', 'until_weekday', 'until_time', 'time_zone'];
begin
  if jsonb_typeof(p_value) <> 'object' or not p_value ?& v_keys or p_value - v_keys <> '{}' then
    return 'must be an object such as {"weekday": 5, "time": "17:00", "until_weekday": 7, "until_time": "17:00", '
      '"time_zone": "America/New_York"}';
  elsif not (p_value ->> 'weekday' ~ '^[1-7]$' and p_value ->> 'until_weekday' ~ '^[1-7]$'
    and jsonb_typeof(p_value -> 'weekday') = 'number' and jsonb_typeof(p_value -> 'until_weekday') = 'number') then
    return 'must name its days from 1 (Monday) to 7 (Sunday)';
  elsif not (p_value ->> 'time' ~ '^([01]\d|2[0-3]):[0-5]\d$'
    and p_value ->> 'until_time' ~ '^([01]\d|2[0-3]):[0-5]\d$') then
    return 'must name its times from "00:00" to "23:59"';
  elsif not coalesce(private.is_time_zone(p_value ->> 'time_zone'), false) then
    return format('names the time zone %s, but it must be one like America/New_York or UTC',
      left(coalesce(p_value ->> 'time_zone', 'null'), 100));
  elsif private.weekend_minutes(p_value) not between 1 and 5760 then
    return 'must end after it begins, and last at most four days: while it lasts, silence of an account that rests at '
      'weekends raises no alert';
  end if;
  return null;
end
$$;
comment on function private.weekend_error(jsonb) is
  'One sentence about what is wrong with a value of the setting weekend; null: nothing is.';

create function private.weekend_minutes(p_value jsonb) returns integer
language sql immutable
set search_path = ''
as $$
  select mod(10080 + ((p_value ->> 'until_weekday')::integer - (p_value ->> 'weekday')::integer) * 1440
    + (extract(epoch from (p_value ->> 'until_time')::time - (p_value ->> 'time')::time) / 60)::integer, 10080)
$$;
comment on function private.weekend_minutes(jsonb) is
  'How long the weekend lasts in minutes, if no clock changes meanwhile; 0: it begins when it ends.';
