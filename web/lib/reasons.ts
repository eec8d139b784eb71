import { REASONS, WARNINGS } from "./reason-texts";

export type Origin = keyof typeof REASONS;
export type Reason = { code: string; origin: Origin | null; what: string; todo: string | null };

/** Outcomes that are no refusals: there was nothing to copy. */
export const NOTHING_TO_DO: readonly string[] = Object.keys(REASONS.nothing);

export const ORIGINS: Readonly<Record<Origin, string>> = {
  rule: "a rule of the copier",
  broker: "the broker",
  agent: "the agent",
  nothing: "nothing to do",
};

const OF_DECISIONS: readonly Origin[] = ["rule", "nothing", "agent", "broker"];
const OF_EXECUTIONS: readonly Origin[] = ["broker", "agent", "rule", "nothing"];

/** The text of a warning; an unknown code is returned unchanged. */
export function explainWarning(code: string): string {
  return Object.entries(WARNINGS).find(([name]) => name === code)?.[1] ?? code;
}

/** The text of a code. `trade_disabled` is both a copier's rule and a broker's reason; `found` selects which. */
export function explain(code: string, found: "decision" | "execution"): Reason {
  for (const origin of found === "decision" ? OF_DECISIONS : OF_EXECUTIONS) {
    const entry = Object.entries(REASONS[origin]).find(([name]) => name === code);
    if (entry) {
      const [what, todo] = entry[1];
      return { code, origin, what, todo: todo === "none" ? null : todo };
    }
  }
  return {
    code,
    origin: null,
    what: "this page does not know the code",
    todo: "see docs/errors.md of the installed version",
  };
}
