/** What `copy_figures` counts: the same figures as in the terminal and in the JSON of a run. */
import type { Json } from "../../supabase/database.types";
import { STAGES, type Stage } from "./figures";
import { lots } from "./format";

export const TRADE_RESULTS = ["copied", "partly", "in_flight", "nothing_to_do", "not_copied"] as const;
export const PERCENTILES = ["p50", "p95", "p99", "max"] as const;

type Counts = ReadonlyMap<string, number>;
/** A trade that was not copied to one follower. `ordered`: an order was made for it, so broker or agent refused it. */
export type Refused = {
  key: string;
  at: string;
  account: string;
  what: string;
  reason: string;
  ordered: boolean;
  detail: string | null;
};
/** Of today in `zone`, of the newest `most` trades and orders; times in ms, of the newest `latest` completed orders. */
export type CopyFigures = {
  zone: string;
  most: number;
  latest: number;
  /** By result, `all` included. */
  trades: Counts;
  /** Trades by reason. */
  notCopied: Counts;
  refused: Refused[];
  /** By status, without `rejected`. */
  orders: Counts;
  /** Orders by reason. */
  rejected: Counts;
  /** 0 to 1; null: no order has ended. */
  success: number | null;
  /** From seen to sent, and from the master's fill to the follower's; null: no order has that time. */
  ours: Spread | null;
  whole: Spread | null;
  /** The median of each stage; null: not known. */
  stages: Record<Stage, number | null>;
};
export type Spread = { p50: number; p95: number; p99: number; max: number; n: number };

type Row = { readonly [key: string]: Json | undefined };

/** Raises an error for an answer of another form. */
export function copyFigures(answer: Json): CopyFigures {
  const row = object(answer);
  const { rejected, ...orders } = object(row["orders"]);
  return {
    zone: text(row["time_zone"]),
    most: number(row["most"]),
    latest: number(row["latest"]),
    trades: counts(row["trades"]),
    notCopied: counts(row["not_copied"]),
    refused: list(row["refused"]).map((one) => refused(object(one))),
    orders: counts(orders),
    rejected: counts(rejected),
    success: row["success_rate"] == null ? null : number(row["success_rate"]),
    ours: spread(object(row["ours_ms"])),
    whole: spread(object(row["whole_ms"])),
    stages: stages(object(row["stages_ms"])),
  };
}

function refused(row: Row): Refused {
  return {
    key: `${text(row["event_id"])} ${text(row["copier_id"])}`,
    at: text(row["at"]),
    account: row["account_id"] == null ? "" : text(row["account_id"]),
    what:
      [row["event"], row["side"], row["lots"] == null ? null : lots(number(row["lots"])), row["symbol"]]
        .filter(Boolean)
        .join(" ") || "a trade",
    reason: text(row["reason"]),
    ordered: row["ordered"] === true,
    detail: row["detail"] == null ? (row["message"] == null ? null : text(row["message"])) : text(row["detail"]),
  };
}

function spread(row: Row): Spread | null {
  const n = number(row["n"]);
  if (!n) return null;
  return { p50: number(row["p50"]), p95: number(row["p95"]), p99: number(row["p99"]), max: number(row["max"]), n };
}

function stages(row: Row): Record<Stage, number | null> {
  const found: Record<Stage, number | null> = {
    detect: null,
    request: null,
    lock: null,
    plan: null,
    deliver: null,
    lane: null,
    broker: null,
  };
  for (const { key } of STAGES) found[key] = row[key] == null ? null : number(row[key]);
  return found;
}

/** The total of counts. */
export const sum = (of: Counts) => [...of.values()].reduce((so_far, n) => so_far + n, 0);

function counts(value: Json | undefined): Counts {
  return new Map(Object.entries(object(value)).map(([name, n]) => [name, number(n)]));
}

function object(value: Json | undefined): Row {
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw strange(value);
  return value;
}

function list(value: Json | undefined): Json[] {
  if (!Array.isArray(value)) throw strange(value);
  return value;
}

function text(value: Json | undefined): string {
  if (typeof value !== "string") throw strange(value);
  return value;
}

/** A decimal number may arrive as text. */
function number(value: Json | undefined): number {
  const found = typeof value === "string" ? Number(value) : value;
  if (typeof found !== "number" || Number.isNaN(found)) throw strange(value);
  return found;
}

const strange = (value: Json | undefined) =>
  new Error(`the figures have another form than this page knows (${JSON.stringify(value)}): reload it`);
