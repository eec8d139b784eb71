/** The summary at the top of the board: is anything wrong now? */
import { atMost, plural } from "./format";
import { ALERTS, type BoardData, REFUSALS, type Unexplained } from "./queries";
import type { Tone } from "./tone";

/** `since`: the time at which it began, if known. */
export type Finding = { tone: Tone; text: string; since: string | null };
/** `since` is set only for a single finding; several findings have their own. */
export type Verdict = Finding & { findings: Finding[] };

/** How long after its deadline an execution counts as stuck; reports may arrive late. */
const STUCK_MS = 5_000;
const HOUR_MS = 3_600_000;

export function judge(board: BoardData, unexplained: Unexplained | null, now: number): Verdict {
  const findings = [
    ...ofTrading(board),
    ...ofAgents(board, now),
    ...ofAccounts(board),
    ...ofAlerts(board),
    ...ofFlight(board, now),
    ...ofUnexplained(unexplained),
    ...ofRejects(board, now),
  ].sort((a, b) => weight(b.tone) - weight(a.tone));
  const [first] = findings;
  if (!first) return { ...calm(board), since: null, findings };
  const more = findings.length - 1;
  if (!more) return { ...first, findings };
  return { tone: first.tone, text: `${first.text}, and ${plural(more, "more problem")}`, since: null, findings };
}

export function isLeaseOver(vps: { lease_expires_at: string; status: string }, now: number): boolean {
  return vps.status !== "enrolled" && Date.parse(vps.lease_expires_at) < now;
}

const weight = (tone: Tone) => ({ bad: 2, warn: 1, ok: 0, idle: 0 })[tone];

function ofTrading({ trading }: BoardData): Finding[] {
  if (!trading || trading.state === "on") return [];
  const what = trading.state === "off" ? "All trading is stopped" : "Opening trades is stopped";
  return [
    {
      tone: trading.state === "off" ? "bad" : "warn",
      text: `${what} by the operators: ${trading.reason}`,
      since: trading.changed_at,
    },
  ];
}

function ofAgents({ vpses }: BoardData, now: number): Finding[] {
  const gone = vpses.filter((vps) => vps.status === "offline" || isLeaseOver(vps, now));
  if (!gone.length) return [];
  const names = gone.map((vps) => vps.name);
  const text = gone.length === 1 ? `Agent ${names[0]} is offline` : `${gone.length} agents are offline: ${list(names)}`;
  return [{ tone: "bad", text, since: earliest(gone.map((vps) => vps.last_heartbeat_at)) }];
}

function ofAccounts({ accounts }: BoardData): Finding[] {
  const found: Finding[] = [];
  const down = accounts.filter((account) => account.status === "disconnected" || account.status === "halted");
  if (down.length) {
    const text =
      down.length === 1
        ? `${down[0]?.name} is ${down[0]?.status}`
        : `${down.length} accounts are not connected: ${list(down.map((a) => a.name))}`;
    found.push({ tone: "bad", text, since: earliest(down.map((account) => account.status_at)) });
  }
  const shaky = accounts.filter((account) => account.status === "degraded" || account.status === "connecting");
  if (shaky.length) {
    const text =
      shaky.length === 1
        ? `${shaky[0]?.name} is ${shaky[0]?.status}`
        : `${shaky.length} accounts are connecting or degraded`;
    found.push({ tone: "warn", text, since: earliest(shaky.map((account) => account.status_at)) });
  }
  return found;
}

function ofAlerts({ alerts }: BoardData): Finding[] {
  const unseen = (severity: string, tone: Tone, word: string): Finding[] => {
    const found = alerts.filter((alert) => alert.severity === severity);
    if (!found.length) return [];
    const what = found.length === 1 ? `One unread ${word}` : `${atMost(found.length, ALERTS)} unread ${word}s`;
    return [{ tone, text: what, since: earliest(found.map((alert) => alert.created_at)) }];
  };
  return [...unseen("critical", "bad", "critical alert"), ...unseen("warning", "warn", "alert")];
}

function ofFlight({ unfinished }: BoardData, now: number): Finding[] {
  const found: Finding[] = [];
  const unknown = unfinished.filter((execution) => execution.status === "unknown");
  if (unknown.length) {
    const what = unknown.length === 1 ? "One order has" : `${atMost(unknown.length, REFUSALS)} orders have`;
    found.push({
      tone: "bad",
      text: `${what} an unknown outcome; the agent is looking for ${unknown.length === 1 ? "it" : "them"}`,
      since: earliest(unknown.map((e) => e.queued_at)),
    });
  }
  const stuck = unfinished.filter((execution) => {
    if (execution.status === "unknown") return false;
    const due =
      execution.status === "retrying" && execution.next_attempt_at ? execution.next_attempt_at : execution.send_before;
    return Date.parse(due) + STUCK_MS < now;
  });
  if (stuck.length) {
    const what = stuck.length === 1 ? "One execution is" : `${atMost(stuck.length, REFUSALS)} executions are`;
    found.push({
      tone: "bad",
      text: `${what} stuck past the deadline`,
      since: earliest(stuck.map((e) => e.queued_at)),
    });
  }
  return found;
}

function ofUnexplained(unexplained: Unexplained | null): Finding[] {
  if (!unexplained?.length) return [];
  const what = unexplained.length === 1 ? "One trade has" : `${atMost(unexplained.length, 100)} trades have`;
  return [
    {
      tone: "bad",
      text: `${what} neither a copy nor a reason; please report this`,
      since: earliest(unexplained.map((pair) => pair.received_at)),
    },
  ];
}

function ofRejects({ failures }: BoardData, now: number): Finding[] {
  const rejected = failures.filter(
    (execution) =>
      execution.status === "rejected" && Date.parse(execution.finalized_at ?? execution.updated_at) > now - HOUR_MS,
  );
  if (!rejected.length) return [];
  const what = rejected.length === 1 ? "One order was" : `${atMost(rejected.length, REFUSALS)} orders were`;
  return [
    { tone: "warn", text: `${what} rejected within the last hour`, since: latest(rejected.map((e) => e.finalized_at)) },
  ];
}

function calm({ accounts, vpses, copiers, operator }: BoardData): { tone: Tone; text: string } {
  if (!accounts.length) {
    return {
      tone: "idle",
      text: operator && vpses.length ? "Nothing is wrong; no account is connected yet" : "No account is connected yet",
    };
  }
  const connected = accounts.filter((account) => account.status === "connected").length;
  const farm = operator ? ` ${plural(vpses.length, "agent")} online,` : "";
  const on = copiers.filter((copier) => copier.mode === "on" && !copier.removal && !copier.removed_at).length;
  return {
    tone: "ok",
    text: `All is well:${farm} ${connected} of ${plural(accounts.length, "account")} connected, ${plural(on, "copier")} on`,
  };
}

function list(names: readonly string[]): string {
  return names.length > 3 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} more` : names.join(", ");
}

function earliest(times: readonly (string | null)[]): string | null {
  return times.filter((at) => at !== null).sort((a, b) => Date.parse(a) - Date.parse(b))[0] ?? null;
}

function latest(times: readonly (string | null)[]): string | null {
  return times.filter((at) => at !== null).sort((a, b) => Date.parse(b) - Date.parse(a))[0] ?? null;
}
