/** All queries to the project. Only this file and use-live.ts use supabase-js. */
import { createClient, type SupabaseClient } from "@supabase/supabase-js";
import type { Database } from "../../supabase/database.types";
import { ServerClock } from "./clock";
import type { Config } from "./config";
import { copyFigures } from "./copy-figures";
import { type Verdict, verdictOf } from "./verdict";

export type Project = { client: SupabaseClient<Database>; clock: ServerClock };
export type User = { id: string; email: string };

const REQUEST_MS = 12_000;
const DAY_MS = 86_400_000;
/** Number of executions that the board shows and computes its percentiles from. */
export const EXECUTIONS = 150;
/** Number of trades (one per follower) that the board shows. */
export const TRADES = 60;
/** Number of unread alerts that the board shows. */
export const ALERTS = 50;

/** A query was refused or not answered. `signedOut`: the session has ended. */
export class QueryFailed extends Error {
  readonly signedOut: boolean;
  constructor(what: string, why: string, signedOut: boolean) {
    super(`${what} could not be read: ${why}`);
    this.signedOut = signedOut;
  }
}

export function connect(config: Config): Project {
  const clock = new ServerClock();
  const timed: typeof fetch = async (input, init) => {
    const sent = Date.now();
    const answer = await fetch(input, { ...init, signal: init?.signal ?? AbortSignal.timeout(REQUEST_MS) });
    clock.hear(answer.headers.get("date"), sent, Date.now());
    return answer;
  };
  return { client: createClient<Database>(config.url, config.publishableKey, { global: { fetch: timed } }), clock };
}

/** Calls `onUser` with the signed-in user, now and at every change. Returns a function that stops this. */
export function watchUser(project: Project, onUser: (user: User | null) => void): () => void {
  let known: string | null | undefined;
  const { data } = project.client.auth.onAuthStateChange((_event, session) => {
    const id = session?.user.id ?? null;
    if (id === known) return; // a refreshed token is not a new user
    known = id;
    onUser(session ? { id: session.user.id, email: session.user.email ?? "" } : null);
  });
  return () => data.subscription.unsubscribe();
}

/** Returns null, or the error message for the user. */
export async function signIn(project: Project, email: string, password: string): Promise<string | null> {
  const { error } = await project.client.auth.signInWithPassword({ email, password });
  if (!error) return null;
  if (error.code === "invalid_credentials" || error.status === 400) return "E-mail or password is wrong.";
  if (error.status === 429) return "Too many attempts. Wait a minute, then try again.";
  return `You could not be signed in: ${error.message}. Is the project reachable?`;
}

/** Deletes the local session even when the server cannot be reached. */
export async function signOut(project: Project): Promise<void> {
  await project.client.auth.signOut({ scope: "local" });
}

type Answer<T> = { data: T | null; error: { message: string; code?: string } | null; status: number };

async function rows<T>(what: string, question: PromiseLike<Answer<T>>): Promise<T> {
  const { data, error, status } = await question;
  if (error || data === null) throw new QueryFailed(what, error?.message || `HTTP ${status}`, status === 401);
  return data;
}

/** Whether the user is an operator, who sees everything. RLS enforces it; this only selects the queries. */
export async function isOperator({ client }: Project, user: User): Promise<boolean> {
  const found = await rows("Your rights", client.from("operators").select("user_id").eq("user_id", user.id));
  return found.length > 0;
}

/** Reads everything that the board shows. `operator` extends the queries from the user's own rows to all rows. */
export async function readBoard(project: Project, user: User, operator: boolean) {
  const [[accounts, assignments, vpses, positions, copiers], verdict, alerts, trades, executions, figures] =
    await Promise.all([
      readFarm(project, user, operator),
      readVerdict(project, operator),
      readAlerts(project, user, operator),
      readTrades(project, user, operator),
      readExecutions(project, user, operator),
      readFigures(project, operator),
    ]);
  return {
    operator,
    verdict,
    accounts,
    assignments,
    vpses,
    positions,
    copiers,
    alerts,
    trades,
    executions,
    figures,
  };
}

export type BoardData = Awaited<ReturnType<typeof readBoard>>;
export type Account = BoardData["accounts"][number];
export type Vps = BoardData["vpses"][number];
export type Alert = BoardData["alerts"][number];
export type Trade = BoardData["trades"][number];
export type Execution = BoardData["executions"][number];

// The policies allow "own rows, or operator": an index on user_id is used only if the query filters by user, too.
async function readFarm({ client }: Project, user: User, operator: boolean) {
  const accounts = client
    .from("trading_accounts")
    .select("id, name, platform, server, mode, currency, balance, equity, funds_at, copy_state, seen_at")
    .is("removed_at", null)
    .order("name")
    .limit(500);
  // The status as it is now: the stored one is only what an agent said last.
  const statuses = client
    .from("account_status")
    .select("account_id, status, reason, waits_for")
    .order("name")
    .limit(500);
  const positions = client.from("positions").select("account_id, kind").is("closed_at", null).limit(1000);
  const copiers = client
    .from("copiers")
    .select("id, name, mode, removal, removed_at, master_account_id, follower_account_id")
    .limit(1000);
  const [stored, present, ...others] = await Promise.all([
    rows("Accounts", operator ? accounts : accounts.eq("user_id", user.id)),
    rows("The status of accounts", operator ? statuses : statuses.eq("user_id", user.id)),
    rows("Assignments", client.from("account_vps_assignments").select("account_id, vps_id, epoch").limit(1000)),
    rows(
      "Agents",
      client
        .from("vps_instances")
        .select(
          "id, name, region, status, capacity, lease_expires_at, last_heartbeat_at, agent_version, cpu_percent, memory_percent, rss_mb, rtt_ms",
        )
        .is("retired_at", null)
        .order("name")
        .limit(500),
    ),
    rows("Positions", operator ? positions : positions.eq("user_id", user.id)),
    rows("Copiers", operator ? copiers : copiers.eq("user_id", user.id)),
  ]);
  const byId = new Map(present.map((status) => [status.account_id, status]));
  const joined = stored.map((account) => {
    const now = byId.get(account.id);
    return { ...account, status: now?.status ?? "unknown", status_reason: now?.waits_for ?? now?.reason ?? null };
  });
  return [joined, ...others] as const;
}

/** Is anything wrong now? The database's own words, which the terminal shows, too. */
async function readVerdict({ client }: Project, operator: boolean): Promise<Verdict> {
  const said = await rows("The verdict", client.rpc("verdict", { p_request: operator ? { all: true } : {} }));
  const verdict = verdictOf(said);
  if (!verdict) throw new QueryFailed("The verdict", "the answer does not have the documented form", false);
  return verdict;
}

/** Alerts that have not been marked as seen. */
function readAlerts({ client }: Project, user: User, operator: boolean) {
  const question = client
    .from("alerts")
    .select("id, user_id, account_id, vps_id, kind, reason, severity, message, times, created_at, updated_at")
    .is("seen_at", null)
    .order("created_at", { ascending: false })
    .limit(ALERTS);
  return rows("Alerts", operator ? question : question.eq("user_id", user.id));
}

/** Later events of the account raise a new alert. Returns null, or the error message for the user. */
export async function markAlertSeen({ client }: Project, alert: number): Promise<string | null> {
  const { error } = await client.rpc("mark_alert_seen", { p_request: { alert_id: alert } });
  return error ? `The alert could not be marked as seen: ${error.message}. Try again.` : null;
}

/** Marks several of the user's own alerts as seen. Returns null, or the error message for the user. */
export async function markAlertsSeen({ client }: Project, alerts: readonly number[]): Promise<string | null> {
  const { error } = await client.rpc("mark_alerts_seen", { p_request: { alert_ids: [...alerts] } });
  return error ? `The alerts could not be marked as seen: ${error.message}. Try again.` : null;
}

/** What was copied today in the reader's zone, counted by the database. */
async function readFigures({ client }: Project, operator: boolean) {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const request = { time_zone: zone, all: operator };
  return copyFigures(await rows("The figures of today", client.rpc("copy_figures", { p_request: request })));
}

/** The results of the newest trades, by copier. */
function readTrades({ client }: Project, user: User, operator: boolean) {
  const question = client
    .from("copied_trades")
    .select(
      "event_id, copier_id, follower_account_id, decided_at, event, master_symbol, master_side, master_lots, status, reason, detail, message, warnings, orders, filled_lots, closed_lots, fill_price, slippage_points, slippage_money, currency, ours_ms, whole_ms",
    )
    .order("decided_at", { ascending: false })
    .limit(TRADES);
  return rows("Trades", operator ? question : question.eq("user_id", user.id));
}

/** The newest executions, each with its latency. */
async function readExecutions({ client }: Project, user: User, operator: boolean) {
  const executions = client
    .from("trade_execution_queue")
    .select(
      "id, account_id, action, symbol, side, lots, filled_lots, status, reason, message, attempt, adopted, queued_at",
    )
    .limit(EXECUTIONS);
  const latencies = client
    .from("execution_latencies")
    .select("id, detect_ms, request_ms, lock_ms, plan_ms, deliver_ms, lane_ms, broker_ms, ours_ms, whole_ms")
    .limit(EXECUTIONS);
  const last = { ascending: false };
  const [found, times] = await Promise.all([
    rows(
      "Executions",
      operator
        ? executions.order("id", last)
        : executions.eq("user_id", user.id).order("queued_at", last).order("id", last),
    ),
    rows(
      "Latencies",
      operator
        ? latencies.order("id", last)
        : latencies.eq("user_id", user.id).order("queued_at", last).order("id", last),
    ),
  ]);
  const byId = new Map(times.map((one) => [one.id, one]));
  return found.map((execution) => ({ ...execution, latency: byId.get(execution.id) ?? null }));
}

/** (event, copier) pairs of the last day with neither copy nor reason, each a bug. A slow query: run it rarely. */
export function readUnexplained({ client, clock }: Project) {
  return rows(
    "Unexplained pairs",
    client
      .from("unexplained_pairs")
      .select("event_id, received_at")
      .gte("received_at", new Date(clock.now() - DAY_MS).toISOString())
      .order("received_at")
      .limit(100),
  );
}

export type Unexplained = Awaited<ReturnType<typeof readUnexplained>>;
