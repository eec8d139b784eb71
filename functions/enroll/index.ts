/**
 * `enroll`: adds the agent of a VPS to the farm, and signs it in later.
 *
 * POST /enroll
 *   {"token","name"?,"platforms","region"?,"capacity"?} → {"vps_id","name","secret","publishable_key"}
 * POST /enroll/session
 *   {"vps_id","secret"} → {"access_token","refresh_token","expires_in"}
 *
 * Callers have no JWT yet (verify_jwt = false in supabase/config.toml): a one-time token protects the first call, the
 * agent's secret the second. Both are long and random, and only their SHA-256 is stored. The rules are in the database
 * (supabase/schemas/agents/enrollment.sql); this function adds what SQL cannot do: users and sessions of Auth.
 */
import { Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { z } from "zod";
import { answerProblem, Problem, unavailable } from "../_shared/problem.ts";
import { publishableKey, serviceClient } from "../_shared/supabase.ts";
import { createAgentUser, deleteAgentUser, randomSecret, sha256Hex, signInAgent } from "./agent_user.ts";

const enrolment = z.strictObject({
  token: z.string().min(16).max(200),
  name: z.string().min(1).max(63).optional(),
  platforms: z.array(z.string().min(1).max(30)).min(1).max(20),
  region: z.string().max(63).optional(),
  capacity: z.int().min(1).max(10_000).optional(),
});
const credentials = z.strictObject({ vps_id: z.uuid(), secret: z.string().min(16).max(200) });
const enrolled = z.object({ vps_id: z.uuid(), name: z.string() });
const known = z.object({ user_id: z.uuid(), email: z.string() });

const app = new Hono().basePath("/enroll");
app.onError(answerProblem);
app.notFound((context) =>
  answerProblem(
    new Problem(404, "TC001", "there is no such endpoint", "POST /enroll or POST /enroll/session."),
    context,
  ),
);
app.use(
  bodyLimit({
    maxSize: 16 * 1024,
    onError: (context) =>
      answerProblem(new Problem(413, "TC002", "the payload is over 16 kB", "Send only what is documented."), context),
  }),
);

app.post("/", async (context) => {
  const request = parse(enrolment, await readJson(context.req.raw));
  // checked before a user is created: a wrong token must not leave anything behind, not even for a moment
  await callFunction("check_enrollment", request);
  const admin = serviceClient();
  const secret = randomSecret();
  const user_id = await createAgentUser(admin);
  try {
    const answer = await callFunction("enroll_vps", { ...request, user_id, secret_hash: await sha256Hex(secret) });
    const { vps_id, name } = parseAnswer(enrolled, answer);
    return context.json({ vps_id, name, secret, publishable_key: publishableKey() ?? null }, 201);
  } catch (error) {
    await deleteAgentUser(admin, user_id);
    throw error;
  }
});

app.post("/session", async (context) => {
  const request = parse(credentials, await readJson(context.req.raw));
  const { user_id, email } = parseAnswer(known, await callFunction("agent_session", request));
  return context.json(await signInAgent(serviceClient(), user_id, email));
});

async function readJson(request: Request): Promise<unknown> {
  try {
    return await request.json();
  } catch {
    throw new Problem(400, "TC001", "the payload is not JSON", "Send a JSON object as documented.");
  }
}

/** Names the invalid field but never its value, which may be a secret. */
function parse<T>(schema: z.ZodType<T>, value: unknown): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const field = issue?.path.join(".") || "the payload";
  throw new Problem(400, "TC001", `${field}: ${issue?.message ?? "invalid"}`, "Send a JSON object as documented.");
}

function parseAnswer<T>(schema: z.ZodType<T>, value: unknown): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw unavailable("the database's answer has an unknown form: deploy function and database of the same version");
}

/** A refusal by the database keeps its code, message and hint; any other error is reported as temporary. */
async function callFunction(name: string, request: Record<string, unknown>): Promise<unknown> {
  const { data, error } = await serviceClient().rpc(name, { p_request: request });
  if (!error) return data;
  if (!/^TC\d{3}$/.test(error.code)) {
    console.error(JSON.stringify({ event: "database_call_failed", function: name, code: error.code }));
    throw unavailable("the database did not answer");
  }
  throw new Problem(REFUSALS.get(error.code) ?? 400, error.code, error.message, error.hint || "See docs/errors.md.");
}

/** HTTP status of the database's refusals; all others are errors of the request (400). */
const REFUSALS: ReadonlyMap<string, 401 | 403 | 409> = new Map([
  ["TC102", 403],
  ["TC210", 403],
  ["TC211", 409],
  ["TC212", 401],
  ["TC213", 409],
] as const);

Deno.serve(app.fetch);
