-- Decisions about opens and increases: made once per copier, master position, generation and increase, and final.

-- Decides one position after the other, in the given order.
create function private.decide_in_turn(p_masters uuid[], p_tickets text[], p_copiers uuid[], p_now timestamptz,
  p_asked text, p_kinds text[]) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  v_one record;
begin
  for v_one in
    select u.master, u.ticket, m.kind
    from unnest(p_masters, p_tickets, p_kinds) with ordinality as u (master, ticket, kind, n)
    join public.positions m on m.account_id = u.master and m.ticket = u.ticket and m.lots > 0
      and (u.kind is null or m.kind = u.kind)
    order by u.n, m.first_seen_at, m.kind
  loop
    v_new := v_new || coalesce(private.decide_kinds(array[v_one.master], array[v_one.ticket], array[v_one.kind],
      p_copiers, p_now, p_asked), '{}');
  end loop;
  return v_new;
end $$;

-- Decides every waiting pair, for any number of followers in one statement, and queues the orders of hedging followers.
-- What a netting follower must open is latched as wanted_lots of its link, for planner/net_plan.sql. Returns the new
-- executions. p_asked, p_kinds: see private.undecided; the age of a requested copy is measured from the request. It is
-- one statement, therefore longer than forty lines.
create function private.decide_kinds(p_masters uuid[], p_tickets text[], p_kinds text[], p_copiers uuid[],
  p_now timestamptz, p_asked text) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_fresh_since timestamptz := p_now - private.setting_s('funds_max_age_s');
  v_quoted_since timestamptz := p_now - private.setting_s('symbol_quote_max_age_s');
  v_drafts private.execution_draft[];
  v_refusals private.outcome[];
  v_waits private.symbol_waits[];
  v_settled private.symbol_waits[];
  v_trading text := private.trading_state();
  v_quiet boolean := private.any_quiet(p_now);
begin
  if cardinality(p_tickets) > 1 and private.limits_count(p_masters) then  -- each counts against the limits of the next
    return private.decide_in_turn(p_masters, p_tickets, p_copiers, p_now, p_asked, p_kinds);
  end if;
  -- The stages:
  --   pairs    what waits for a decision, with its accounts, symbols and side
  --   checked  why it is refused before it is sized (verdict)
  --   sized    its orders and levels
  --   limited  its orders, held to the limits of the account's protection rules
  --   decided  its reason, or none; the numbers of its step and link
  --   made     the links of new pairs and flips
  --   grown    the links that increase
  --   drafts   the executions of hedging followers
  --   refused  the outcomes of all others
  --   waiting  the pairs that need a symbol or quote that is not told yet (planner/symbol_wait.sql)
  with pairs as (
    select
      pair.kind,
      pair.link_id,
      pair.generation,
      pair.delta,
      greatest(wait.lots, pair.delta, case when p_asked is null and pair.asked_lots is null and pair.kind <> 'new'
        then opened.grown_lots - (opened.lots - pair.delta) end) as most_lots,
      pair.close_step,
      pair.asked_lots,
      copier,
      case when opened.price = 0 then private.at_known_price(opened, masters_symbol, p_now) else opened end as opened,
      master,
      follower,
      masters_symbol,
      private.opening_blocked_reason(v_trading, follower.copy_state, follower.copy_state_reason, copier.mode,
        copier.removal) as blocked,
      private.unreachable_reason(follower, vps.lease_expires_at, p_now) as unreachable,
      private.filter_refusal(copier, opened, (private.fresh_funds(follower, v_fresh_since)).equity,
        pair.kind <> 'increase', case pair.kind when 'flip' then pair.link_id end, p_now) as refusal,
      -- an increase goes where its copy is; else the user's mapping counts; else the same name with the same figures;
      -- else copier/symbol.sql decides
      case
        when masters_symbol.contract_size is null then null::public.account_symbols
        when pair.kind = 'increase' then private.symbol_of_link(pair.link_id)
        when mapping.copier_id is not null and named.name is null then
          private.symbol_named(follower.id, mapping.follower_symbol)
        when mapping.copier_id is not null
          or named.contract_size = masters_symbol.contract_size
          and named.profit_currency = masters_symbol.profit_currency
          and named.trade_mode not in ('close_only', 'disabled') then named
        else private.choose_symbol(follower, masters_symbol)
      end as symbol,
      mapping.copier_id is not null as mapped,
      mapping.mode as mapping_mode,
      mapping.lots_factor,
      case when (opened.side = 'buy') = copier.reverse then 'sell' else 'buy' end as side,
      case
        when wait.copier_id is not null and wait.asked is not distinct from p_asked then wait.news_at
        when p_asked is null and pair.asked_lots is null then opened.unseen_at
        else p_now
      end as news_at,
      wait,
      coalesce(wait.event_id, opened.last_event_id) as event_id,
      mapping.follower_symbol as mapped_to,
      coalesce(p_asked = 'resync', false) or pair.asked_lots is not null as by_user
    from private.undecided(p_masters, p_tickets, p_copiers, p_asked, p_kinds) pair
    join public.copiers copier on copier.id = pair.copier_id
    join public.positions opened on opened.account_id = pair.master_account_id and opened.ticket = pair.ticket
      and opened.kind = pair.position_kind
    join public.trading_accounts master on master.id = copier.master_account_id
    join public.trading_accounts follower on follower.id = copier.follower_account_id
    left join public.account_symbols masters_symbol on masters_symbol.account_id = master.id
      and masters_symbol.name = opened.symbol
    left join public.symbol_mappings mapping on mapping.copier_id = copier.id
      and mapping.master_key = upper(btrim(opened.symbol))
    left join public.account_symbols named on named.account_id = follower.id
      and named.name = coalesce(mapping.follower_symbol, opened.symbol)
    left join private.symbol_waits wait on wait.copier_id = copier.id and wait.kind = opened.kind
      and wait.ticket = opened.ticket and wait.side = opened.side
    left join public.account_vps_assignments assignment on assignment.account_id = follower.id
    left join public.vps_instances vps on vps.id = assignment.vps_id and vps.retired_at is null
    offset 0  -- here and below: a fence, so that each row's functions are called once, without storing the wide rows
  ), checked as (
    select
      pair.*,
      coalesce(
        pair.blocked,
        case when private.must_be_flat(pair.follower, p_now) then 'flat_by' end,
        case when pair.news_at < p_now - make_interval(secs => (pair.copier).max_age_ms / 1000.0)
          then coalesce((pair.wait).ends_as, 'too_old') end,
        pair.unreachable,
        pair.refusal,
        case when v_quiet and private.quiet_until(pair.follower, pair.symbol, (pair.opened).symbol, p_now) is not null
          then 'news_window' end,
        case when pair.mapping_mode <> 'on' then 'symbol_off' end,
        case when (pair.symbol).contract_size is null then
          private.loading_refusal(pair.master, pair.masters_symbol, pair.follower) end,
        private.symbol_refusal(pair.symbol, pair.side),
        case when (pair.opened).price is null then 'no_quote' end,
        case when (pair.symbol).name <> (pair.opened).symbol and not pair.mapped and pair.kind <> 'increase' then
          private.proof_refusal(pair.masters_symbol, pair.symbol, (pair.opened).price, p_now) end,
        case when p_asked is not null or pair.by_user then
          private.asked_too_late(coalesce(p_asked, 'resync'), pair.copier, pair.opened, pair.master, pair.symbol,
            pair.side, p_now)
        end) as verdict,
      pair.kind = 'increase' and (pair.opened).kind = 'position'
        and ((pair.copier).sl_mode in ('distance', 'fixed') or (pair.copier).max_sl_points is not null) as own_stop
    from pairs pair
    offset 0
  ), sized as (
    select
      pair.*,
      case when pair.verdict is null then
        private.size_order(
          case when pair.own_stop then private.at_stop(sizing.copier) else sizing.copier end,
          case (pair.copier).sizing_mode when 'free_margin_ratio'
            then private.funds_left(pair.copier, pair.master, pair.opened, v_fresh_since, p_now)
            else private.fresh_funds(pair.master, v_fresh_since) end,
          case (pair.copier).sizing_mode when 'free_margin_ratio'
            then private.funds_left(pair.copier, pair.follower, pair.opened, v_fresh_since, p_now)
            else private.fresh_funds(pair.follower, v_fresh_since) end,
          case when (pair.masters_symbol).quoted_at > v_quoted_since then pair.masters_symbol
            else private.unquoted(pair.masters_symbol) end,
          case when (pair.symbol).quoted_at > v_quoted_since then pair.symbol else private.unquoted(pair.symbol) end,
          (pair.opened).side,
          pair.most_lots,
          -- what is bought today loses from today's price to the stop, wherever the master began; a stop by distance
          -- goes along with the price
          case
            when (pair.kind = 'increase' or p_asked is not null and (pair.copier).sl_mode <> 'distance')
              and (pair.opened).kind = 'position'
              then coalesce(private.entry_price(pair.symbol, pair.side, (pair.opened).price, p_now),
                (pair.opened).price)
            else (pair.opened).price
          end,
          case
            when pair.own_stop and not (pair.copier).reverse then
              private.stop_of_increase(pair.copier, pair.opened, pair.symbol, pair.side, pair.link_id, p_now)
            else (pair.opened).sl
          end,
          case
            when pair.own_stop and (pair.copier).reverse then
              private.stop_of_increase(pair.copier, pair.opened, pair.symbol, pair.side, pair.link_id, p_now)
            else (pair.opened).tp
          end,
          case
            when (pair.master).currency = (pair.follower).currency
              and (pair.symbol).profit_currency = (pair.follower).currency
              and (pair.masters_symbol).profit_currency = (pair.master).currency then '{}'::jsonb
            else private.quoted_rates(array[(pair.follower).id, (pair.master).id],
              array[(pair.master).currency, (pair.follower).currency, (pair.masters_symbol).profit_currency,
                (pair.symbol).profit_currency, private.quoted_currency((pair.masters_symbol).name),
                private.quoted_currency((pair.symbol).name)])
          end)
      end as wanted_size,
      case
        when pair.verdict is not null then null
        when (pair.copier).sl_mode = 'price' and (pair.copier).tp_mode = 'price'
          and (pair.copier).max_sl_points is null
          and (pair.symbol).stops_level_points = 0 and (pair.symbol).freeze_level_points = 0
          then private.price_levels(
            case when (pair.copier).reverse then (pair.opened).tp else (pair.opened).sl end,
            case when (pair.copier).reverse then (pair.opened).sl else (pair.opened).tp end,
            (pair.symbol).tick_size)
        else private.first_levels(pair.copier, pair.opened, pair.symbol, pair.side,
          case when pair.kind = 'increase' then private.open_price(pair.link_id) end, p_now)
      end as levels,
      case when pair.verdict is null and (pair.copier).max_open_lots is not null then
        (private.copier_load(pair.copier, case pair.kind when 'flip' then pair.link_id end, p_now)).lots
      end as held_lots,
      private.on_tick((pair.opened).price, (pair.symbol).tick_size) as order_price
    from checked pair
    cross join lateral (
      select case
        when pair.asked_lots is not null then private.sized_by(pair.copier, pair.asked_lots)
        when (pair.copier).lots_jitter_percent > 0 then
          private.jittered(pair.copier, (pair.opened).ticket, pair.generation)
        else pair.copier
      end as copier
    ) drawn
    cross join lateral (
      select case when pair.lots_factor <> 1 and pair.asked_lots is null
        then private.times_factor(drawn.copier, pair.lots_factor) else drawn.copier end as copier
    ) sizing
    offset 0
  ), limited as (
    select
      pair.*,
      case when (pair.follower).guarded and pair.verdict is null then
        private.held_to_limits(pair.follower, pair.symbol, pair.side, left_of.size, (pair.opened).price,
          (pair.levels).sl, (pair.opened).kind = 'order', v_fresh_since, p_now)
      else left_of.size end as size
    from sized pair
    -- the master has reduced what waited for its decision: its copy, too
    cross join lateral (
      select case when pair.most_lots > pair.delta
        then private.share_left(pair.wanted_size, pair.most_lots, pair.delta, pair.symbol)
        else pair.wanted_size end as size
    ) left_of
    offset 0
  ), decided as materialized (
    select
      pair.*,
      coalesce(
        pair.verdict,
        (pair.size).reason,
        case when pair.held_lots + (select sum(lots) from unnest((pair.size).orders) lots)
          > (pair.copier).max_open_lots then 'max_open_lots' end) as reason,
      (pair.follower).mode = 'netting' as netting,
      nextval('public.trade_execution_queue_id_seq') as step_id,
      case pair.kind when 'increase' then pair.link_id else nextval('public.position_links_id_seq') end as its_link
    from limited pair
  ), made as (
    insert into public.position_links (
      id,
      user_id,
      copier_id,
      master_account_id,
      follower_account_id,
      master_ticket,
      master_kind,
      master_side,
      generation,
      symbol,
      side,
      state,
      reason,
      seen_master_lots,
      sized_master_lots,
      sized_lots,
      wanted_lots,
      wanted_until,
      asked_price,
      asked_sl,
      asked_tp,
      asked_expires_at,
      order_due_at,
      warnings,
      event_id,
      created_at,
      ended_at)
    overriding system value
    select
      pair.its_link,
      (pair.copier).user_id,
      (pair.copier).id,
      (pair.copier).master_account_id,
      (pair.copier).follower_account_id,
      (pair.opened).ticket,
      (pair.opened).kind,
      (pair.opened).side,
      pair.generation,
      (pair.symbol).name,
      pair.side,
      case when pair.reason is null then 'live' else 'ended' end,
      pair.reason,
      (pair.opened).lots,
      (pair.opened).lots,
      (select sum(lots) from unnest((pair.size).orders) lots),
      case when pair.reason is null and pair.netting then
        (select sum(lots) from unnest((pair.size).orders) lots) end,
      case when pair.reason is null and pair.netting then
        pair.news_at + make_interval(secs => (pair.copier).max_age_ms / 1000.0) end,
      case when (pair.opened).kind = 'order' then pair.order_price end,
      (pair.levels).sl,
      (pair.levels).tp,
      case when (pair.opened).kind = 'order' then (pair.opened).expires_at end,
      case when (pair.opened).kind = 'order' then (pair.opened).expires_at + interval '1 s' end,
      coalesce((pair.size).warnings || (pair.levels).warnings, '{}'),
      pair.event_id,
      p_now,
      case when pair.reason is not null then p_now end
    from decided pair
    where pair.kind in ('new', 'flip') and pair.reason is distinct from 'symbols_loading'
  ), grown as (
    update public.position_links link set
      seen_master_lots = (pair.opened).lots,
      reason = pair.reason,
      resync_lots = null,
      sized_lots = case
        when pair.reason is null and pair.asked_lots is null then link.sized_lots * link.seen_master_lots
          + link.sized_master_lots * (select sum(lots) from unnest((pair.size).orders) lots)
        else link.sized_lots
      end,
      sized_master_lots = case
        when pair.reason is null and pair.asked_lots is null then link.sized_master_lots * (pair.opened).lots
        else link.sized_master_lots
      end,
      asked_sl = case when pair.reason is null then (pair.levels).sl else link.asked_sl end,
      asked_tp = case when pair.reason is null then (pair.levels).tp else link.asked_tp end,
      asked_unknown = pair.reason is not null and link.asked_unknown,
      wanted_lots = case when pair.reason is null and pair.netting then
        (select sum(lots) from unnest((pair.size).orders) lots) end,
      wanted_until = case when pair.reason is null and pair.netting then
        pair.news_at + make_interval(secs => (pair.copier).max_age_ms / 1000.0) end,
      -- a skipped increase rebases the pair
      base_master_lots = case when pair.reason is null then link.base_master_lots else (pair.opened).lots end,
      base_lots = case
        when pair.reason is null then link.base_lots
        else coalesce((
          select sum(leg.lots) from private.link_legs leg where leg.link_id = link.id and leg.kind = 'position'), 0)
      end
    from decided pair
    where pair.kind = 'increase' and link.id = pair.link_id and pair.reason is distinct from 'symbols_loading'
      and link.id = any (array(select i.link_id from decided i where i.kind = 'increase'))
  ), drafts as (
    select
      pair.step_id,
      case when pair.kind = 'flip' then pair.close_step end as after_id,
      pair.its_link as link_id,
      pair.its_link::text as lane,
      (pair.copier).id as copier_id,
      (pair.copier).user_id,
      (pair.follower).id as account_id,
      (pair.master).id as master_account_id,
      pair.event_id,
      case
        when pair.kind = 'increase' then 'increase'
        when (pair.opened).kind = 'order' then 'place'
        else 'open'
      end as action,
      (pair.symbol).name as symbol,
      pair.side,
      private.copied_order_type((pair.opened).order_type, (pair.copier).reverse) as order_type,
      an_order.lots,
      null::numeric as target_lots,
      null::text as ticket,
      case when (pair.opened).kind = 'order' then pair.order_price end as price,
      (pair.levels).sent_sl as sl,
      (pair.levels).sent_tp as tp,
      (pair.copier).max_slippage_points,
      case
        when pair.by_user then private.entry_price(pair.symbol, pair.side, (pair.opened).price, p_now)
        else (pair.opened).price
      end as master_price,
      (pair.opened).lots as master_lots,
      (pair.opened).expires_at,
      case
        when (pair.copier).comment like '%{%' then private.copy_comment(pair.copier, (pair.opened).ticket)
        else (pair.copier).comment
      end as comment,
      null::jsonb as parts,
      (pair.size).warnings || (pair.levels).warnings as warnings,
      p_now + make_interval(secs => (pair.copier).retry_window_s) as retry_until,
      pair.news_at + make_interval(secs => (pair.copier).max_age_ms / 1000.0) as send_until,
      -- what a user asked for, or a new copier finds, no event of the master causes
      case when p_asked is null and not pair.by_user then (pair.opened).detected_at end as detected_at
    from decided pair
    cross join lateral unnest((pair.size).orders) as an_order (lots)
    where pair.reason is null and not pair.netting
  ), refused as (  -- or, of a netting follower, left to its symbol's next deal
    select
      pair.event_id,
      (pair.copier).id as copier_id,
      (pair.copier).user_id,
      case when pair.reason is distinct from 'symbols_loading' then pair.its_link else pair.link_id end as link_id,
      null::bigint as execution_id,
      coalesce(pair.reason, 'coalesced') as reason,
      case
        when pair.reason = 'symbols_loading' then
          private.loading_words(coalesce(pair.mapped_to, (pair.opened).symbol), pair.masters_symbol, pair.symbol)
        when pair.reason = 'symbol_unmapped' and (pair.symbol).name is not null then
          private.told_late_words(pair.copier, (pair.symbol).name)
        when pair.reason = 'symbol_unmapped' then private.unmapped_detail((pair.copier).id, (pair.opened).symbol)
        when pair.reason = 'symbol_unproven' then
          coalesce(private.price_doubt(pair.masters_symbol, pair.symbol, (pair.opened).price, p_now)
              || ' Choose it in the copier''s symbols if it is right.',
            private.told_late_words(pair.copier, 'The quote of ' || (pair.symbol).name))
        when pair.verdict is not null then
          private.refusal_words(pair.copier, pair.opened, pair.follower, pair.symbol, pair.reason, p_now)
        when pair.reason = 'max_open_lots' then
          format('The limit of open lots is %s: %s are held or under way, and this would be %s more.',
            trim_scale((pair.copier).max_open_lots), trim_scale(pair.held_lots),
            (select trim_scale(sum(lots)) from unnest((pair.size).orders) lots))
        when pair.reason is not null then array_to_string((pair.size).explain, ' ')
      end as detail
    from decided pair
    where (pair.reason is not null or pair.netting and p_asked is null and not pair.by_user)
      and pair.event_id is not null
  ), waiting as (
    select
      (pair.copier).id as copier_id,
      (pair.master).id as master_account_id,
      (pair.follower).id as follower_account_id,
      (pair.opened).kind,
      (pair.opened).ticket,
      (pair.opened).side,
      pair.event_id,
      p_asked as asked,
      pair.news_at,
      pair.news_at + make_interval(secs => (pair.copier).max_age_ms / 1000.0) as ends_at,
      case when (pair.symbol).name is null then 'symbol_unmapped' else 'symbol_unproven' end as ends_as,
      private.symbols_in_question(pair.follower, pair.masters_symbol, (pair.opened).symbol,
        coalesce((pair.symbol).name, pair.mapped_to)) as symbols,
      pair.most_lots as lots
    from decided pair
    where pair.reason = 'symbols_loading'
  )
  select
    (select array_agg(draft::private.execution_draft) from drafts draft),
    (select array_agg(refusal::private.outcome) from refused refusal),
    (select array_agg(wait::private.symbol_waits) from waiting wait),
    (select array_agg(pair.wait) from decided pair
      where (pair.wait).copier_id is not null and pair.reason is distinct from 'symbols_loading')
  into v_drafts, v_refusals, v_waits, v_settled;
  v_new := private.queue_executions(v_drafts, true, p_now);
  if v_refusals is not null then
    perform private.store_outcomes(v_refusals);
  end if;
  if v_waits is not null then
    perform private.begin_waits(v_waits);
  end if;
  if v_settled is not null then
    perform private.settle_waits(v_settled);
  end if;
  if v_new is not null and exists (select 1 from public.copiers c
    where c.master_account_id = any (p_masters) and c.removed_at is null
    and (c.delay_max_ms > 0 or c.lots_jitter_percent > 0)) then
    v_new := private.hold_back(v_new, p_now);
  end if;
  return v_new;
end $$;

-- Decides whatever of these numbers waits, order or position.
create function private.decide(p_masters uuid[], p_tickets text[], p_copiers uuid[], p_now timestamptz,
  p_asked text default null) returns bigint[]
language plpgsql security definer set search_path = '' as $$
begin
  return private.decide_kinds(p_masters, p_tickets, null, p_copiers, p_now, p_asked);
end $$;
