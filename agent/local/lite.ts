// Auth and the tables' REST, served by @supabase/lite on a loopback port behind the gateway.
// Two apps on one server, for two sets of rights: Auth as supabase_auth_admin, REST as postgres
// (it reads the schema as the role that it logs in as, and then becomes the caller's role for each request).
import { App, getAuthSchemaSql } from "@supabase/lite";
import { createPostgresConnection } from "@supabase/lite/postgres";

interface Settings {
  readonly rest_dsn: string;
  readonly auth_dsn: string;
  readonly jwt_secret: string;
  readonly publishable_key: string;
  readonly secret_key: string;
  readonly site_url: string;
  readonly max_rows: number;
  readonly jwt_expiry: number;
}

const settings: Settings = JSON.parse(Deno.env.get("TRADECOPIER_LITE") ?? "{}");

// The driver would encode jsonb twice and print times in Postgres' way, which the Python client refuses to read.
const asText = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value));
const rfc3339 = (text: string): string => {
  const iso = text.replace(" ", "T").replace(/([+-]\d\d)$/, "$1:00");
  return iso.endsWith("+00:00") ? `${iso.slice(0, -6)}Z` : iso;
};
const types = {
  json: { to: 114, from: [114], serialize: asText, parse: (text: string) => JSON.parse(text) },
  jsonb: { to: 3802, from: [3802], serialize: asText, parse: (text: string) => JSON.parse(text) },
  timestamptz: {
    to: 1184,
    from: [1184],
    serialize: (value: unknown) => (value instanceof Date ? value.toISOString() : String(value)),
    parse: rfc3339,
  },
};

const connect = (url: string, max: number) =>
  createPostgresConnection({ url, postgresOptions: { max, types, idle_timeout: 30, connect_timeout: 5, onnotice: () => {} } });

function open(connection: ReturnType<typeof connect>) {
  return new App({
    connection,
    auth: {
      enabled: true,
      jwt_secret: settings.jwt_secret,
      jwt_expiry: settings.jwt_expiry,
      publishable_key: settings.publishable_key,
      secret_key: settings.secret_key,
      site_url: settings.site_url,
      enable_signup: true,
      email: { enable_signup: true, enable_confirmations: false },
    },
    api: { schemas: ["public"], max_rows: settings.max_rows },
    storage: { enabled: false },
    studio: { enabled: false },
  });
}

const authConnection = connect(settings.auth_dsn, 4);
// Only auth's tables; what platform.sql made is left as it is.
await authConnection.driver.unsafe(getAuthSchemaSql());
// REST looks up the session of a user's token.
await authConnection.driver.unsafe("grant select, insert, update, delete on all tables in schema auth to postgres");
const auth = open(authConnection);
const restConnection = connect(settings.rest_dsn, 8);
let rest = open(restConnection);

Deno.serve(
  {
    hostname: "127.0.0.1",
    port: Number(Deno.env.get("PORT")),
    onListen: () => {},
  },
  async (request) => {
    const path = new URL(request.url).pathname;
    if (path === "/ready") {
      return new Response("ok");
    }
    if (path === "/reload") {
      // The schema is read when an app starts: a new one sees new tables.
      rest = open(restConnection);
      return new Response("ok");
    }
    const app = path.startsWith("/auth/") ? auth : rest;
    // No peer: the package's admin mode, which lifts all limits on loopback, stays off.
    return await app.fetch(request, { peerAddress: null });
  },
);
