/** How something stands. Always shown with an icon and words, never by colour alone. */
export type Tone = "ok" | "warn" | "bad" | "idle";

/** What a status of an account means for its user. */
export function accountTone(status: string, copyState: string): Tone {
  if (status === "connected") return copyState === "on" ? "ok" : "idle";
  if (status === "connecting" || status === "degraded") return "warn";
  return status === "pending" ? "idle" : "bad";
}

export function vpsTone(status: string, leaseOver: boolean): Tone {
  if (status === "enrolled") return "idle";
  if (status === "offline" || leaseOver) return "bad";
  return status === "online" ? "ok" : "warn";
}

/** What came of a trade, by `status` of copied_trades. */
export function tradeTone(status: string | null): Tone {
  if (status === "copied") return "ok";
  return status === "in_flight" ? "idle" : "warn";
}

export function executionTone(status: string): Tone {
  if (status === "completed") return "ok";
  if (status === "rejected" || status === "unknown") return "bad";
  return status === "expired" || status === "retrying" ? "warn" : "idle";
}
