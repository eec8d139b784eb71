"""The REST API of tables and views: one SQL statement per request; Postgres builds the JSON, as in PostgREST."""
