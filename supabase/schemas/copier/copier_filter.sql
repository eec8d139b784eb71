-- A copier's lists of patterns, compiled when the copier is saved. The planner matches every trade against them.

create table private.copier_filters (
  copier_id uuid primary key references public.copiers (id) on delete cascade,
  symbols_only private.patterns not null,
  symbols_except private.patterns not null,
  comment_only private.patterns not null,
  comment_except private.patterns not null
);
comment on table private.copier_filters is
  'Compiled lists of patterns, one row per copier that has any. A trigger on copiers keeps it up to date for every '
  'writer.';
alter table private.copier_filters enable row level security;

create function private.compile_filters() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if new.symbols_only || new.symbols_except || new.comment_only || new.comment_except = '{}' then
    delete from private.copier_filters where copier_id = new.id;
    return null;
  end if;
  insert into private.copier_filters as f (copier_id, symbols_only, symbols_except, comment_only, comment_except)
  values (new.id, private.compiled(new.symbols_only), private.compiled(new.symbols_except),
    private.compiled(new.comment_only),
    private.compiled(new.comment_except))
  on conflict (copier_id) do update set symbols_only = excluded.symbols_only, symbols_except = excluded.symbols_except,
    comment_only = excluded.comment_only, comment_except = excluded.comment_except;
  return null;
end $$;
create trigger compile_filters after insert on public.copiers for each row
  when (new.symbols_only || new.symbols_except || new.comment_only || new.comment_except <> '{}') execute function
    private.compile_filters();
create trigger compile_filters_again after update of symbols_only, symbols_except, comment_only, comment_except
  on public.copiers for each row
  when ((old.symbols_only, old.symbols_except, old.comment_only, old.comment_except)
    is distinct from (new.symbols_only, new.symbols_except, new.comment_only,
      new.comment_except)) execute function private.compile_filters();
