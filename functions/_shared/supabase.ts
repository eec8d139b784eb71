import { createClient, type SupabaseClient } from "@supabase/supabase-js";
import { z } from "zod";

/** Timeout of every call from a function; hosted ends an idle request after 150 s. */
const CALL_TIMEOUT_MS = 10_000;

const keyRing = z.record(z.string(), z.string());

/** Reads hosted's current variables first (JSON with named keys), then the legacy single keys. */
function key(ringName: string, legacyName: string): string | undefined {
  const ring = keyRing.safeParse(readJson(Deno.env.get(ringName)));
  const named = ring.success ? (ring.data["default"] ?? Object.values(ring.data)[0]) : undefined;
  return named ?? Deno.env.get(legacyName);
}

function readJson(text: string | undefined): unknown {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}

export function publishableKey(): string | undefined {
  return key("SUPABASE_PUBLISHABLE_KEYS", "SUPABASE_ANON_KEY");
}

/**
 * A new client with the project's secret key (role service_role). Use one per purpose: a client that signs a user in
 * acts as that user afterwards.
 */
export function serviceClient(): SupabaseClient {
  const url = Deno.env.get("SUPABASE_URL");
  const secret = key("SUPABASE_SECRET_KEYS", "SUPABASE_SERVICE_ROLE_KEY");
  if (!url || !secret) {
    throw new Error("SUPABASE_URL and a secret key are missing from the function's environment");
  }
  return createClient(url, secret, {
    auth: { autoRefreshToken: false, persistSession: false, detectSessionInUrl: false },
    global: {
      fetch: (input, init) => fetch(input, { ...init, signal: AbortSignal.timeout(CALL_TIMEOUT_MS) }),
    },
  });
}
