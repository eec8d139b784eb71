-- The clock. Heartbeats do the same work when it stands still (52_maintain.sql), so that a dead scheduler costs seconds.

create extension if not exists pg_cron with schema pg_catalog;

-- By name: applying it again replaces the job.
select cron.schedule('tradecopier-maintain', '3 seconds', 'select private.maintain()');
select cron.schedule('tradecopier-doorbells', '1 second', 'select private.ring_doorbells()');

-- pg_cron writes down every run for ever: 120,000 rows a day.
select cron.schedule('tradecopier-cron-history', '17 * * * *',
  $$delete from cron.job_run_details where end_time < now() - interval '1 day'$$);
