// Auth and the REST API of the tables, served by @supabase/lite on a loopback port behind the gateway.
// Two apps share one server because they need different rights: Auth runs as supabase_auth_admin, REST as postgres
// (it reads the schema as its login role, then switches to the caller's role for each request).
import { App, getAuthSchemaSql } from "@supabase/lite";
import { createPostgresConnection } from "@supabase/lite/postgres";
import { sayBriefly } from "./brief_errors.ts";
import { fromGateway, refuse, tellPort } from "./gateway_only.ts";

console.error = sayBriefly(console.error);

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
Deno.env.delete("TRADECOPIER_LITE");

// By default the driver would encode jsonb twice and print times in Postgres' format, which the Python client rejects.
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

function connect(url: string, max: number) {
  const postgresOptions = { max, types, idle_timeout: 30, connect_timeout: 5, onnotice: () => {} };
  const connection = createPostgresConnection({ url, postgresOptions });
  // By default, before its first request, the package grants everything on all present and future tables to anon,
  // authenticated and service_role. Rights are set by the migrations, so the package is made to believe it is done.
  if (Reflect.get(connection, "rlsState") !== "unknown") {
    throw new Error(
      "this version of @supabase/lite may grant rights by itself; adapt agent/stack/lite.ts so that it cannot",
    );
  }
  Reflect.set(connection, "rlsState", "active");
  return connection;
}

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
// Creates only auth's tables and leaves those of platform.sql alone. platform.sql also sets the rights on them.
await authConnection.driver.unsafe(getAuthSchemaSql());
const auth = open(authConnection);
const restConnection = connect(settings.rest_dsn, 8);
let rest = open(restConnection);

const isBelow = (path: string, prefix: string): boolean => path === prefix || path.startsWith(`${prefix}/`);

Deno.serve(
  {
    hostname: "127.0.0.1",
    port: 0,
    onListen: tellPort,
  },
  async (request) => {
    const path = new URL(request.url).pathname;
    const asked = fromGateway(request);
    if (asked && path === "/ready") {
      return new Response("ok");
    }
    if (asked && path === "/reload") {
      // An app reads the schema when it starts, so a new app sees new tables.
      rest = open(restConnection);
      return new Response("ok");
    }
    // The package serves more than these two; its admin pages would show the database's address and password to
    // anybody.
    const app = isBelow(path, "/auth/v1") ? auth : isBelow(path, "/rest/v1") ? rest : undefined;
    if (!app) {
      return refuse(404, "NOT_FOUND", "there is no endpoint at this path");
    }
    if (!asked) {
      return refuse(401, "UNAUTHORIZED", "only the stack's gateway may call this server");
    }
    // Without a peer address the package's admin mode, which lifts all limits on loopback, stays off.
    return await app.fetch(asked, { peerAddress: null });
  },
);
