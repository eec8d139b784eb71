"""The behaviour of hosted's REST API, Auth and Edge Functions that a client can see, one line per fact.

Each is tested with both official clients (`tests/stack/official/`); `make parity` lists the tests.
"""

from agent.stack.realtime.facts import Fact

FACTS: tuple[Fact, ...] = (
    Fact("api.numbers", "numbers, times and bytes of tables and views come exactly as stored, as Postgres' own JSON"),
    Fact("api.json-strings", "a string written to json or jsonb stays a string"),
    Fact("api.exposed-only", "only exposed schemas are read, embedded or called: PGRST106, PGRST200, PGRST205"),
    Fact("api.embedding", "relationships are found by table, column, constraint, junction, view or function"),
    Fact("api.self-reference", "a table that refers to itself: by name the list, by column the parent"),
    Fact("api.reload", "new tables, columns, relationships and functions are served without a restart"),
    Fact("api.overloads", "overloads that names do not tell apart: 300 PGRST203; one unnamed argument takes the body"),
    Fact("api.call-counts", "a call can be counted, filtered and asked for its count only"),
    Fact("api.defaults", "missing=default gives absent keys the columns' defaults, generated keys included"),
    Fact("api.upsert", "an upsert merges (200) or ignores; an insert answers 201"),
    Fact("api.counts", "exact, planned and estimated counts of a small table are right"),
    Fact("api.any-all", "* is a wildcard in like and ilike with any and all, too"),
    Fact("api.filters", "filters of every kind"),
    Fact("api.single", "one row, perhaps one row, and CSV"),
    Fact("api.max-affected", "a write or call that affects too many rows is rolled back: PGRST124"),
    Fact("api.safe-update", "an update or delete without a filter is refused: 21000"),
    Fact("api.refusals", "errors have hosted's status, code and hint"),
    Fact("auth.input", "users need an address in e-mail form; pages are numbers"),
    Fact("auth.left-away", "what Auth leaves away (MFA, SSO, links, invitations) says so in the client's error"),
    Fact("stack.left-away", "Storage, GraphQL and absent extensions are refused with a JSON error"),
    Fact("functions.cors", "the function alone decides about CORS; its preflight needs no token"),
    Fact("database.roles", "postgres may configure the API's roles", "python", "SQL, not a client"),
)
