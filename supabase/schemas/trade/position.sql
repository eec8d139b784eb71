-- Positions: the mirror of what every account holds, as its agent last read it.

create table public.positions (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  ticket text not null,
  user_id uuid not null,
  kind text not null,
  symbol text not null,
  side text not null,
  order_type text,
  lots numeric not null,
  grown_lots numeric,
  price numeric not null,
  sl numeric,
  tp numeric,
  magic text,
  comment text,
  tag bigint,
  opened_at timestamptz,
  expires_at timestamptz,
  session bigint not null,
  seq bigint not null,
  existing boolean not null default false,
  released boolean not null default false,
  absent_snapshots integer not null default 0,
  unseen_at timestamptz not null,
  detected_at timestamptz not null,
  first_seen_at timestamptz not null,
  filled_at timestamptz,
  changed_at timestamptz not null,
  last_event_id bigint,
  replaced_by text,
  replaced_by_kind text,
  closed_at timestamptz,
  close_reason text,
  primary key (account_id, ticket, kind),
  constraint kind_is_known check (kind in ('position', 'order')),
  constraint side_is_known check (side in ('buy', 'sell')),
  constraint order_type_is_known check (order_type in ('limit', 'stop')),
  constraint lots_not_negative check (lots >= 0),
  constraint gone_means_closed check ((lots = 0) = (closed_at is not null)),
  constraint successor_has_a_kind check ((replaced_by is null) = (replaced_by_kind is null))
);
comment on table public.positions is
  'Mirror of what an account holds: positions and pending orders. Closed rows are kept as tombstones, so that a late '
  'message cannot bring them back.';
comment on column public.positions.kind is
  'belongs to the key: an order and a position of one account may carry the same number';
comment on column public.positions.grown_lots is
  'its lots when it last came, grew or turned round: what is decided about that later is sized for them';
comment on column public.positions.replaced_by is
  'with replaced_by_kind: the ticket under which it continues, such as the position of a filled order';
comment on column public.positions.session is
  'with seq: number of the last message that changed or confirmed the row; a lower number never overrules it';
comment on column public.positions.existing is
  'was in the account''s very first snapshot: never copied automatically';
comment on column public.positions.released is
  'was a copy and is now the user''s own position, because its copier was removed with preserve';
comment on column public.positions.absent_snapshots is
  'consecutive complete snapshots without it; two of them close it if the history does not explain it';
comment on column public.positions.filled_at is
  'when the pending order that became this position filled; null = it never was an order';
comment on column public.positions.unseen_at is
  'the last read in which the open or increase was absent; its age is measured from here';
comment on column public.positions.tag is 'execution number of the order that made it, if it is one of our copies';
comment on column public.positions.last_event_id is 'trade event that last changed it';

-- the present mirror of an account: snapshots, netting ledgers, dashboards
create index positions_open on public.positions (account_id, symbol) where closed_at is null;

-- retention
create index positions_closed on public.positions (closed_at) where closed_at is not null;
create index positions_of_user on public.positions (user_id) where closed_at is null;
alter table public.positions enable row level security;
create policy "own positions are readable" on public.positions for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.positions to authenticated, service_role;

-- What is wrong with a position, compared with docs/protocol.md; null: nothing is. One expression, because every
-- reported position is checked here. NaN and Infinity exceed every bound.
create function private.position_error(p jsonb) returns text
language plpgsql stable set search_path = '' as $$
begin
  return case
    when jsonb_typeof(p) is distinct from 'object' then 'position is missing or not an object'
    when jsonb_typeof(p -> 'ticket') is distinct from 'string' or length(p ->> 'ticket') not between 1 and 64
      then 'position.ticket must be a text of 1 to 64 characters'
    when jsonb_typeof(p -> 'symbol') is distinct from 'string' or length(p ->> 'symbol') not between 1 and 64
      then 'position.symbol must be a text of 1 to 64 characters'
    when coalesce(p ->> 'kind', '') not in ('position', 'order') then 'position.kind must be "position" or "order"'
    when coalesce(p ->> 'side', '') not in ('buy', 'sell') then 'position.side must be "buy" or "sell"'
    when p ->> 'kind' = 'order' and coalesce(p ->> 'order_type', '') not in ('limit', 'stop')
      then 'position.order_type of an order must be "limit" or "stop"'
    when coalesce(not pg_input_is_valid(p ->> 'lots', 'numeric')
      or (p ->> 'lots')::numeric not between 0 and 1e12, true)
      then 'position.lots must be a decimal number between 0 and 1e12'
    when coalesce(not pg_input_is_valid(p ->> 'price', 'numeric')
      or (p ->> 'price')::numeric not between -1e12 and 1e12, true)
      then 'position.price must be a decimal number between -1e12 and 1e12'
    when not pg_input_is_valid(p ->> 'sl', 'numeric') or (p ->> 'sl')::numeric not between -1e12 and 1e12
      then 'position.sl must be a decimal number between -1e12 and 1e12'
    when not pg_input_is_valid(p ->> 'tp', 'numeric') or (p ->> 'tp')::numeric not between -1e12 and 1e12
      then 'position.tp must be a decimal number between -1e12 and 1e12'
    when coalesce(p ->> 'replaces_kind', 'order') not in ('position', 'order')
      then 'position.replaces_kind must be "position", "order" or null'
    when not coalesce(pg_input_is_valid(p ->> 'opened_at', 'timestamptz'), true)
      then 'position.opened_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(p ->> 'expires_at', 'timestamptz'), true)
      then 'position.expires_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(p ->> 'tag', 'bigint'), true) then 'position.tag must be an execution number'
  end;
end $$;
