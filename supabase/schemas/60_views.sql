-- Views for people: Studio, the dashboard, checks.

create view public.unexplained_pairs with (security_invoker = true) as
select e.id as event_id, e.received_at, e.account_id, e.type, e.ticket, c.id as copier_id, c.follower_account_id
from public.trade_events e
join public.copiers c on c.master_account_id = e.account_id and c.created_at <= e.received_at
  and (c.removed_at is null or c.removed_at > e.received_at)
left join public.copy_outcomes o on o.event_id = e.id and o.copier_id = c.id
where e.status = 'accepted' and e.type <> 'snapshot' and e.received_at > now() - interval '30 days'  -- older outcomes may be gone
  and (o.event_id is null
    or (o.execution_id is not null and not exists (select 1 from public.trade_execution_queue q where q.id = o.execution_id)));
comment on view public.unexplained_pairs is
  'Every (event, copier) that has neither a copy nor a reason. Must be empty; a row here is a bug.';
grant select on public.unexplained_pairs to authenticated, service_role;
