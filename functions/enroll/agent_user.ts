import type { AuthError, SupabaseClient } from "@supabase/supabase-js";
import { Problem, unavailable } from "../_shared/problem.ts";
import { serviceClient } from "../_shared/supabase.ts";

/** 256 random bits as text, far below bcrypt's limit of 72 bytes when used as a password. */
export function randomSecret(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(32));
  return btoa(String.fromCharCode(...bytes))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");
}

export async function sha256Hex(text: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Creates an agent's auth user. Its address receives no mail: `.invalid` is a reserved domain that never resolves. */
export async function createAgentUser(admin: SupabaseClient): Promise<string> {
  const { data, error } = await admin.auth.admin.createUser({
    email: `agent-${crypto.randomUUID()}@agents.invalid`,
    password: randomSecret(),
    email_confirm: true,
  });
  if (error) throw authProblem(error, "the agent's user could not be created");
  return data.user.id;
}

/** Undoes `createAgentUser`. If that fails, the remaining user belongs to no VPS and is refused everywhere (TC101). */
export async function deleteAgentUser(admin: SupabaseClient, userId: string): Promise<void> {
  const { error } = await admin.auth.admin.deleteUser(userId);
  if (error) console.error(JSON.stringify({ event: "agent_user_left_behind", user_id: userId, status: error.status }));
}

export type Session = { access_token: string; refresh_token: string; expires_in: number };

/**
 * Signs an agent in without a stored password: the user gets a new random one each time, which is used once, here.
 *
 * A one-time link (generateLink + verifyOtp) would work on hosted, but it needs the e-mail provider and its rate
 * limits, and the embedded Auth server has no such links. The password grant works on both. It is requested with the
 * project's secret key, which hosted exempts from a CAPTCHA. On hosted a new password also ends the user's older
 * sessions: a refresh token that somebody held for this agent becomes invalid.
 */
export async function signInAgent(admin: SupabaseClient, userId: string, email: string): Promise<Session> {
  const password = randomSecret();
  const { error: unchanged } = await admin.auth.admin.updateUserById(userId, { password });
  if (unchanged) throw authProblem(unchanged, "the agent's user could not be prepared for signing in");

  const { data, error } = await serviceClient().auth.signInWithPassword({ email, password });
  if (error?.code === "invalid_credentials") {
    // another request of the same agent has set a new password in the meantime
    throw unavailable("two sign-ins of this agent ran at the same time");
  }
  if (error) throw authProblem(error, "the agent could not be signed in");
  const { access_token, refresh_token, expires_in } = data.session;
  return { access_token, refresh_token, expires_in };
}

function authProblem(error: AuthError, message: string): Problem {
  console.error(
    JSON.stringify({
      event: "auth_call_failed",
      what: message,
      error: error.name,
      status: error.status,
      code: error.code,
    }),
  );
  if (error.status === 429) {
    return new Problem(429, "TC142", message, "Too many sign-ins at once: wait half a minute and try again.", 30);
  }
  return unavailable(message);
}
