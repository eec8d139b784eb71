/** The summary at the top of the board: is anything wrong now? The database says it; see docs/api.md, verdict. */
import { atMost, plural } from "./format";
import type { Tone } from "./tone";

/** `since`: the time at which it began, if known. */
export type Finding = { tone: Tone; text: string; since: string | null };
/** `since` is set only for a single finding; several findings have their own. */
export type Verdict = Finding & { findings: readonly Finding[] };

/** The verdict in an answer of the database; null if it has another form, so that it never passes for a good one. */
export function verdictOf(said: unknown): Verdict | null {
  const first = findingOf(said);
  const list = isRecord(said) ? said["findings"] : null;
  if (!first || !Array.isArray(list)) return null;
  const findings = list.map(findingOf).filter((finding) => finding !== null);
  return findings.length === list.length ? { ...first, findings } : null;
}

/** Pairs that have neither a copy nor a reason are read rarely, because that is slow; there should be none. */
export function withUnexplained(verdict: Verdict, unexplained: readonly { received_at: string | null }[]): Verdict {
  const [oldest] = unexplained;
  if (!oldest) return verdict;
  const what = unexplained.length === 1 ? "One trade has" : `${atMost(unexplained.length, 100)} trades have`;
  const text = `${what} neither a copy nor a reason; please report this`;
  const finding: Finding = { tone: "bad", text, since: oldest.received_at };
  const findings = [...verdict.findings, finding];
  if (verdict.tone === "bad") return { ...verdict, findings };
  const more = verdict.findings.length;
  if (!more) return { ...finding, findings };
  return { tone: "bad", text: `${text}, and ${plural(more, "more problem")}`, since: null, findings };
}

export function isLeaseOver(vps: { lease_expires_at: string; status: string }, now: number): boolean {
  return vps.status !== "enrolled" && Date.parse(vps.lease_expires_at) < now;
}

function findingOf(said: unknown): Finding | null {
  if (!isRecord(said)) return null;
  const { tone, text, since } = said;
  if (tone !== "ok" && tone !== "idle" && tone !== "warn" && tone !== "bad") return null;
  if (typeof text !== "string" || (since !== null && typeof since !== "string")) return null;
  return { tone, text, since };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
