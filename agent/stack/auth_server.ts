// Auth, served by @supabase/lite on a loopback port behind the gateway. It runs as supabase_auth_admin.
import { App, getAuthSchemaSql } from "@supabase/lite";
import { createPostgresConnection } from "@supabase/lite/postgres";
import { sayBriefly } from "./brief_errors.ts";
import { fromGateway, refuse, tellPort } from "./gateway_only.ts";

console.error = sayBriefly(console.error);

interface Settings {
  readonly dsn: string;
  readonly jwt_secret: string;
  readonly publishable_key: string;
  readonly secret_key: string;
  readonly site_url: string;
  readonly jwt_expiry: number;
}

const settings: Settings = JSON.parse(Deno.env.get("TRADECOPIER_AUTH") ?? "{}");
Deno.env.delete("TRADECOPIER_AUTH");

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
      "this version of @supabase/lite may grant rights by itself; adapt agent/stack/auth_server.ts so that it cannot",
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
    storage: { enabled: false },
    studio: { enabled: false },
  });
}

const connection = connect(settings.dsn, 4);
// Creates only auth's tables and leaves those of platform.sql alone. platform.sql also sets the rights on them.
await connection.driver.unsafe(getAuthSchemaSql());
const auth = open(connection);

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
    // The package serves more than this; its admin pages would show the database's address and password to anybody.
    if (!isBelow(path, "/auth/v1")) {
      return refuse(404, "NOT_FOUND", "there is no endpoint at this path");
    }
    if (!asked) {
      return refuse(401, "UNAUTHORIZED", "only the stack's gateway may call this server");
    }
    // Without a peer address the package's admin mode, which lifts all limits on loopback, stays off.
    return await auth.fetch(asked, { peerAddress: null });
  },
);
