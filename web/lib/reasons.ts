import { REASONS, WARNINGS } from "./reason-texts";

export type Origin = keyof typeof REASONS;
export type Reason = { code: string; origin: Origin | null; what: string; todo: string | null };

export const ORIGINS: Readonly<Record<Origin, string>> = {
  rule: "a rule of the copier",
  broker: "the broker",
  agent: "the agent",
  nothing: "nothing to do",
};

const RESULTS: Readonly<Record<string, string>> = {
  copied: "copied",
  partly: "partly copied",
  in_flight: "in flight",
  nothing_to_do: "nothing to do",
  not_copied: "not copied",
};

/** The result of a trade, `status` of copied_trades, in words. */
export const resultWords = (status: string | null) => RESULTS[status ?? ""] ?? inWords(status ?? "");

/** The words of a code that this page does not know: names of the code are for programs. */
export const inWords = (code: string) => code.replaceAll("_", " ");

/** Agents and the database put a code before the words of a status: "autotrading_off: the terminal …". */
export const withoutCode = (text: string) => text.replace(/^[a-z][a-z0-9_]{1,39}: /, "");

const OF_DECISIONS: readonly Origin[] = ["rule", "nothing", "agent", "broker"];
const OF_EXECUTIONS: readonly Origin[] = ["broker", "agent", "rule", "nothing"];

/** The text of a warning. */
export function explainWarning(code: string): string {
  return Object.entries(WARNINGS).find(([name]) => name === code)?.[1] ?? inWords(code);
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
    what: inWords(code),
    todo: "see docs/errors.md of the installed version",
  };
}
