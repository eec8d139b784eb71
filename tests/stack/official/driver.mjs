// Runs the official supabase-js for the tests: one JSON request per line in, one answer per line out.
// `code` is an expression of `db`, a client made for this request alone; `text` in the answer is the body as it came.
import { createInterface } from "node:readline";
import { createClient } from "@supabase/supabase-js";
import WebSocket from "ws";

const AsyncFunction = Object.getPrototypeOf(async () => {}).constructor;

async function run({ url, key, code }) {
  const seen = { text: "", status: 0, headers: {} };
  const watching = async (input, init) => {
    const response = await fetch(input, init);
    seen.text = await response.clone().text();
    seen.status = response.status;
    seen.headers = Object.fromEntries(response.headers);
    return response;
  };
  const db = createClient(url, key, {
    auth: { persistSession: false, autoRefreshToken: false, detectSessionInUrl: false },
    global: { fetch: watching },
    realtime: { transport: WebSocket },
  });
  const { data = null, error = null, count = null } = await new AsyncFunction("db", `return ${code}`)(db);
  const { code: named, message, details = null, hint = null } = error ?? {};
  return { ...seen, data, count, error: error && { code: named ?? null, message, details, hint } };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, ...request } = JSON.parse(line);
  const answer = await run(request).catch((error) => ({ failure: String(error.stack ?? error) }));
  process.stdout.write(`${JSON.stringify({ id, ...answer })}\n`);
}
