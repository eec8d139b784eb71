-- Entries of a snapshot that cannot be taken, such as a position with a price that is no number. Such an entry is
-- there, but what it is cannot be told: what the mirror holds under its ticket stays as it is, and the other entries
-- count.

create table private.unread_entries (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  ticket text not null,
  kind text not null,
  error text not null,
  unseen_at timestamptz not null,
  existing boolean not null,
  primary key (account_id, ticket, kind)
);
comment on table private.unread_entries is
  'Entries of the last snapshot that could not be taken. A row goes once its entry can be read or is gone.';
comment on column private.unread_entries.kind is 'position, order, or empty where the entry does not say it.';
comment on column private.unread_entries.unseen_at is
  'The last read without it: if it turns out to be a new trade, its age is measured from here.';
comment on column private.unread_entries.existing is 'It was in the account''s very first snapshot.';
alter table private.unread_entries enable row level security;

-- What an entry that can be read now was before: a row of unread_entries, or null.
create function private.read_at_last(p_account uuid, p_ticket text, p_kind text) returns private.unread_entries
language sql volatile security definer set search_path = '' as $$
  select u from private.unread_entries u
  where u.account_id = p_account and u.ticket = p_ticket and u.kind in ('', p_kind)
  order by u.unseen_at limit 1
$$;
