/** Latency of a copy: from detecting the master's change to sending the follower's order, without the broker's time. */
import type { Execution } from "./queries";

export const STAGES = [
  {
    key: "decide",
    label: "detect and decide",
    hint: "from the detection of the master's change to the queued execution",
  },
  { key: "transport", label: "transport", hint: "from the database to the follower's agent" },
  { key: "agent", label: "agent", hint: "in the follower's agent, until the order is sent" },
  { key: "broker", label: "broker", hint: "the broker's processing time; not part of the total" },
] as const;
export type Stage = (typeof STAGES)[number]["key"];
export type Times = Record<Stage, number | null> & { total: number | null };
export type Spread = { p50: number; p95: number; p99: number; max: number; n: number };

/** Two clocks may differ slightly; a duration is never negative. */
function between(from: string | null, to: string | null): number | null {
  return from && to ? Math.max(0, microseconds(to) - microseconds(from)) / 1000 : null;
}

/** Date has milliseconds, the database microseconds, which are needed here. */
function microseconds(at: string): number {
  const digits = /\.(\d+)/.exec(at)?.[1] ?? "";
  return Date.parse(at.replace(/\.\d+/, "")) * 1000 + Number(digits.slice(0, 6).padEnd(6, "0"));
}

export function timesOf(execution: Execution): Times {
  const { detected_at, queued_at, received_at, sent_at, done_at } = execution;
  return {
    total: between(detected_at, sent_at),
    decide: between(detected_at, queued_at),
    transport: between(queued_at, received_at),
    agent: between(received_at, sent_at),
    broker: between(sent_at, done_at),
  };
}

/** Only completed copies count. An adopted one was found later, so its times are no latency. */
export function measured(executions: readonly Execution[]): Times[] {
  return executions
    .filter((execution) => execution.status === "completed" && !execution.adopted)
    .map(timesOf)
    .filter((times) => times.total !== null);
}

/** Nearest-rank percentiles; null when there are no values. */
export function spread(values: readonly (number | null)[]): Spread | null {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
  const [p50, p95, p99, max] = [at(0.5), at(0.95), at(0.99), at(1)];
  if (p50 === undefined || p95 === undefined || p99 === undefined || max === undefined) return null;
  return { p50, p95, p99, max, n: sorted.length };
}
