-- Position links: which position of a follower copies which position of a master; their legs and netting ledgers.

create table public.position_links (
  id bigint generated always as identity primary key,
  user_id uuid not null,
  copier_id uuid not null references public.copiers (id),
  master_account_id uuid not null,
  follower_account_id uuid not null,
  master_ticket text not null,
  master_kind text not null default 'position',
  master_side text not null,
  generation integer not null default 1,
  symbol text,
  side text,
  state text not null,
  reason text,
  seen_master_lots numeric not null,
  base_master_lots numeric,
  base_lots numeric,
  sized_lots numeric,
  sized_master_lots numeric,
  wanted_lots numeric,
  wanted_until timestamptz,
  rest_lots numeric,
  resync_lots numeric,
  asked_price numeric,
  asked_sl numeric,
  asked_tp numeric,
  asked_expires_at timestamptz,
  asked_unknown boolean not null default false,
  order_due_at timestamptz,
  modify_failures integer not null default 0,
  close_failures integer not null default 0,
  replan_at timestamptz,
  levels_due_at timestamptz,
  stopped_out boolean not null default false,
  warnings text[] not null default '{}',
  event_id bigint,
  created_at timestamptz not null default now(),
  ended_at timestamptz,
  constraint one_link_per_generation unique (copier_id, master_ticket, master_kind, generation),
  constraint master_kind_is_known check (master_kind in ('position', 'order')),
  constraint state_is_known check (state in ('live', 'ended')),
  constraint ended_means_ended_at check ((state = 'ended') = (ended_at is not null)),
  constraint ended_has_a_reason check (state = 'live' or reason is not null),
  constraint live_knows_its_symbol check (state = 'ended' or (symbol is not null and side is not null))
);
comment on table public.position_links is
  'One decision to copy (or not to copy) a position of a master: made once per copier, master position and generation, '
  'and latched. An ended link with the reason of a refusal is such a latch.';
comment on column public.position_links.master_kind is
  'with master_ticket: the order or position that is copied now; it becomes a position when the order fills';
comment on column public.position_links.master_side is
  'side of the master''s position when the link was made; if it changes (a flip), the link ends and a new generation '
  'begins';
comment on column public.position_links.seen_master_lots is
  'master volume up to which opens and increases have been decided';
comment on column public.position_links.base_master_lots is
  'master volume that base_lots was sized from; a reduction''s target is base_lots x master now / base_master_lots';
comment on column public.position_links.base_lots is 'volume held after the last fill or skipped increase';
comment on column public.position_links.reason is
  'ended link: why it ended; live link: why its newest increase was refused, null if it was not';
comment on column public.position_links.sized_lots is
  'the size that the settings gave for sized_master_lots, added up over the decisions, as an exact fraction; the '
  'difference to the held volume is drift';
comment on column public.position_links.resync_lots is
  'lots that the user asked to add in a resync; set for one decision, within one transaction';
comment on column public.position_links.asked_sl is 'the level last asked for, not the one that the broker made of it';
comment on column public.position_links.asked_unknown is
  'nobody knows which levels (of an order: and price) the broker has now; the planner asks for them again';
comment on column public.position_links.stopped_out is
  'the follower''s broker closed all or part of the copy for lack of margin';
comment on column public.position_links.wanted_lots is
  'lots that are decided but wait: netting followers for the symbol''s deal in flight, the copy of a filled order for '
  'the cancelling of its own order';
comment on column public.position_links.rest_lots is
  'netting followers: the part of wanted_lots that is the rest of an open in several orders; once the first order has '
  'filled, base_lots counts it as held';
comment on column public.position_links.asked_price is
  'price last asked for a pending order; null once the copy is a position';
comment on column public.position_links.order_due_at is
  'copies of pending orders: when the copier must act (the master''s order has filled, or expires)';
comment on column public.position_links.replan_at is 'from then on a refused close or modify is planned again';
comment on column public.position_links.levels_due_at is
  'when the quiet window is over that changes of its levels wait for; null: they do not wait';

-- the planner: links of a master position, newest generation first
create index position_links_of_master on public.position_links (master_account_id, master_ticket, copier_id,
  generation desc);

-- the planner: live links of a follower and symbol (netting), flattening
create index position_links_live on public.position_links (follower_account_id, symbol) where state = 'live';

-- maintain: links that are due
create index position_links_due on public.position_links (replan_at) where state = 'live' and replan_at is not null;
create index position_links_levels_due on public.position_links (levels_due_at)
  where state = 'live' and levels_due_at is not null;
create index position_links_orders_due on public.position_links (order_due_at)
  where state = 'live' and order_due_at is not null;
create index position_links_wanted on public.position_links (wanted_until) where wanted_lots is not null;
create index position_links_of_user on public.position_links (user_id, created_at);
create index position_links_ended on public.position_links (ended_at) where state = 'ended';
alter table public.position_links enable row level security;
create policy "own links are readable" on public.position_links for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.position_links to authenticated, service_role;

create table private.link_legs (
  link_id bigint not null references public.position_links (id) on delete cascade,
  account_id uuid not null,
  ticket text not null,
  ticket_kind text not null default 'position',
  kind text not null,
  lots numeric not null,
  price numeric,
  primary key (link_id, ticket, ticket_kind),
  constraint kind_is_known check (kind in ('position', 'order') and ticket_kind in ('position', 'order')),
  constraint lots_are_positive check (lots > 0)
);
comment on table private.link_legs is
  'What a link holds at its follower: usually one ticket, several after a split or an increase. On a netting account, '
  'lots is the link''s share of the net position.';
comment on column private.link_legs.ticket_kind is 'with ticket: the order or position at the follower';
comment on column private.link_legs.kind is
  'what the leg is booked as: still an order after its order has filled, until the fill is booked';
create index link_legs_of_ticket on private.link_legs (account_id, ticket);
alter table private.link_legs enable row level security;

create table private.net_ledgers (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  symbol text not null,
  net_lots numeric not null default 0,
  asked_sl numeric,
  asked_tp numeric,
  modify_failures integer not null default 0,
  failures integer not null default 0,
  replan_at timestamptz,
  surprises jsonb not null default '[]',
  surplus_lots numeric not null default 0,
  surplus_link_id bigint,
  primary key (account_id, symbol)
);
comment on table private.net_ledgers is
  'Netting followers: the signed net volume that was last booked to links. A difference from the broker''s net '
  'position is booked before anything is planned.';
comment on column private.net_ledgers.failures is
  'consecutive refusals of deals that only reduce; the next deal waits until replan_at';
comment on column private.net_ledgers.surprises is
  'the newest changes of the net position that none of our deals explained: [{"link_id": the link that lost them, or '
  'null, "lots": signed, "at", "surplus": the part taken from the surplus}]; a deal that was given up and filled after '
  'all may explain one';
comment on column private.net_ledgers.surplus_lots is
  'signed lots that our deals moved and that belong to no link (two attempts filled, a reduction dealt twice); part of '
  'net_lots; the next deal moves them back';
comment on column private.net_ledgers.surplus_link_id is
  'the link whose deal left the surplus; planning that link plans the surplus';
create index net_ledgers_due on private.net_ledgers (replan_at) where replan_at is not null;
alter table private.net_ledgers enable row level security;
