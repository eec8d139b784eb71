/** The severity of a state. It is always shown with an icon and text, never by colour alone. */
export type Tone = "ok" | "warn" | "bad" | "idle";

/** The tone of an account's status. */
export function accountTone(status: string, copyState: string): Tone {
  if (status === "connected") return copyState === "on" ? "ok" : "idle";
  if (status === "connecting" || status === "degraded") return "warn";
  if (status === "pending") return "warn";
  return status === "weekend" ? "idle" : "bad";
}

export function vpsTone(status: string, leaseOver: boolean): Tone {
  if (status === "enrolled") return "idle";
  if (status === "offline" || leaseOver) return "bad";
  return status === "online" ? "ok" : "warn";
}

/** The tone of a trade's result, by `status` of copied_trades. */
export function tradeTone(status: string | null): Tone {
  if (status === "copied") return "ok";
  return status === "in_flight" || status === "nothing_to_do" ? "idle" : "warn";
}

export function executionTone(status: string): Tone {
  if (status === "completed") return "ok";
  if (status === "rejected" || status === "unknown") return "bad";
  return status === "expired" || status === "retrying" ? "warn" : "idle";
}
