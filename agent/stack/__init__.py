"""The embedded Supabase: Postgres, Auth, REST, Functions, Realtime and the web on one loopback origin."""
