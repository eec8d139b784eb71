import type { AuthError, SupabaseClient } from "@supabase/supabase-js";
import { Problem, unavailable } from "../_shared/problem.ts";
import { serviceClient } from "../_shared/supabase.ts";

/** 256 random bits as text. Passwords made of it stay far below bcrypt's 72 bytes. */
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

/** Makes the auth user of an agent. Its address is never mailed: `.invalid` is reserved for names that lead nowhere. */
export async function createAgentUser(admin: SupabaseClient): Promise<string> {
  const { data, error } = await admin.auth.admin.createUser({
    email: `agent-${crypto.randomUUID()}@agents.invalid`,
    password: randomSecret(),
    email_confirm: true,
  });
  if (error) throw authProblem(error, "the agent's user could not be created");
  return data.user.id;
}

/** Undoes `createAgentUser`. A user that stays behind belongs to no VPS and is refused everywhere (TC101). */
export async function deleteAgentUser(admin: SupabaseClient, userId: string): Promise<void> {
  const { error } = await admin.auth.admin.deleteUser(userId);
  if (error) console.error(JSON.stringify({ event: "agent_user_left_behind", user_id: userId, status: error.status }));
}

export type Session = { access_token: string; refresh_token: string; expires_in: number };

/**
 * Signs an agent in without a stored password: each time the user gets a fresh random one, which is used once, here.
 *
 * A one-time link (generateLink + verifyOtp) would do on hosted, but it needs the e-mail provider and its rate limits,
 * and the embedded Auth server has no such links. The password grant works on both. It is asked with the project's secret key,
 * which hosted exempts from a CAPTCHA. On hosted a new password also ends the user's older sessions: whoever
 * held a refresh token of this agent before is out.
 */
export async function signInAgent(admin: SupabaseClient, userId: string, email: string): Promise<Session> {
  const password = randomSecret();
  const { error: unchanged } = await admin.auth.admin.updateUserById(userId, { password });
  if (unchanged) throw authProblem(unchanged, "the agent's user could not be prepared for signing in");

  const { data, error } = await serviceClient().auth.signInWithPassword({ email, password });
  if (error?.code === "invalid_credentials") {
    // the same agent signed in a moment ago in another request, which set its own password in between
    throw unavailable("two sign-ins of this agent met");
  }
  if (error) throw authProblem(error, "the agent could not be signed in");
  const { access_token, refresh_token, expires_in } = data.session;
  return { access_token, refresh_token, expires_in };
}

function authProblem(error: AuthError, message: string): Problem {
  console.error(
    JSON.stringify({ event: "auth_call_failed", what: message, error: error.name, status: error.status, code: error.code }),
  );
  if (error.status === 429) {
    return new Problem(429, "TC142", message, "Too many sign-ins at once: wait half a minute and try again.", 30);
  }
  return unavailable(message);
}
