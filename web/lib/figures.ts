/** Latency of orders. The database computes every stage and both sums. */
import type { Execution } from "./queries";

/** The stages in their order, named as in docs/latency.md. */
export const STAGES = [
  { key: "detect", hint: "from the master's fill until its agent saw it" },
  { key: "request", hint: "until the database received the event" },
  { key: "lock", hint: "until the accounts concerned were locked for planning" },
  { key: "plan", hint: "until the order was planned" },
  { key: "deliver", hint: "until the follower's agent had the order" },
  { key: "lane", hint: "that the order waited at the agent until it was sent" },
  { key: "broker", hint: "until the follower's broker had answered" },
] as const;
export type Stage = (typeof STAGES)[number]["key"];
/** `ours`: seen to sent; `whole`: the master's fill to the follower's fill. In ms; null: not known. */
export type Times = Record<Stage | "ours" | "whole", number | null>;

/** A decimal number may arrive as text. */
const exact = (value: number | string | null | undefined) =>
  value === null || value === undefined ? null : Number(value);

/** Null for an order that no event of a master caused: it has no latency. */
export function timesOf({ latency }: Execution): Times | null {
  if (!latency) return null;
  const times: Times = {
    detect: exact(latency.detect_ms),
    request: exact(latency.request_ms),
    lock: exact(latency.lock_ms),
    plan: exact(latency.plan_ms),
    deliver: exact(latency.deliver_ms),
    lane: exact(latency.lane_ms),
    broker: exact(latency.broker_ms),
    ours: exact(latency.ours_ms),
    whole: exact(latency.whole_ms),
  };
  return Object.values(times).some((ms) => ms !== null) ? times : null;
}
