-- The schedule of pg_cron. If pg_cron stands still, heartbeats do the same work (maintain.sql), so that a dead
-- scheduler costs only seconds.

create extension if not exists pg_cron with schema pg_catalog;

-- The job's name makes this repeatable: scheduling it again replaces the job.
select cron.schedule('tradecopier-maintain', '3 seconds', 'select private.maintain()');

select cron.schedule('tradecopier-doorbells', '1 second', 'select private.ring_doorbells()');

-- pg_cron logs every run and never deletes: 120,000 rows a day.
select cron.schedule('tradecopier-cron-history', '17 * * * *',
  $$delete from cron.job_run_details where end_time < now() - interval '1 day'$$);
