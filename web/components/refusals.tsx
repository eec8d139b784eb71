"use client";

import { useMemo, useState } from "react";
import { atMost, lots, plural } from "../lib/format";
import { type BoardData, REFUSALS } from "../lib/queries";
import { explain, NOTHING_TO_DO, ORIGINS, type Reason } from "../lib/reasons";
import { Age } from "./now";
import { Empty, Panel } from "./panel";
import { Icon } from "./tone";

type Names = ReadonlyMap<string, string>;
type Item = { key: string; at: string; reason: Reason; what: string; follower: string; detail: string | null };

const SHOWN = 12;

/** Trades that were not copied, by reason: refused by a rule (decisions), or by broker or agent (executions). */
export function Refusals({ board, names }: Readonly<{ board: BoardData; names: Names }>) {
  const [chosen, setChosen] = useState<string | null>(null);
  const [all, setAll] = useState(false);
  const items = useMemo(() => collect(board, names), [board, names]);
  const groups = useMemo(() => [...Map.groupBy(items, groupOf)].sort(([, a], [, b]) => b.length - a.length), [items]);
  const known = chosen !== null && groups.some(([group]) => group === chosen) ? chosen : null;
  const matching = known === null ? items : items.filter((item) => groupOf(item) === known);
  const shown = all ? matching : matching.slice(0, SHOWN);

  return (
    <Panel title="Not copied, and why" aside={`last 24 hours: ${atMost(items.length, 2 * REFUSALS)}`}>
      {items.length ? (
        <div className="refusals">
          <ul className="reasons" aria-label="Reasons">
            {groups.map(([group, [first, ...others]]) =>
              first ? (
                <li key={group}>
                  <button
                    type="button"
                    aria-pressed={group === known}
                    onClick={() => setChosen(group === known ? null : group)}
                  >
                    <b className="count">{others.length + 1}</b>
                    <span>
                      <code>{first.reason.code}</code>
                      {first.reason.origin ? <span className="by"> {ORIGINS[first.reason.origin]}</span> : null}
                      <span className="sub">{first.reason.what}</span>
                      {first.reason.todo ? <span className="sub todo">{first.reason.todo}</span> : null}
                    </span>
                  </button>
                </li>
              ) : null,
            )}
          </ul>
          <div>
            <ol
              className="list"
              aria-label={
                known === null ? "All refusals" : `Refusals of one reason, ${plural(matching.length, "trade")}`
              }
            >
              {shown.map((item) => (
                <li key={item.key}>
                  <Icon tone="warn" />
                  <span className="what">
                    {item.what} <span className="to">for {item.follower}</span>
                    <span className="sub">
                      <code>{item.reason.code}</code> {item.detail ?? item.reason.what}
                    </span>
                  </span>
                  <Age at={item.at} />
                </li>
              ))}
            </ol>
            {matching.length > SHOWN ? (
              <button type="button" className="quiet more" onClick={() => setAll(!all)}>
                {all ? `Show the newest ${SHOWN}` : `Show all ${matching.length}`}
              </button>
            ) : null}
          </div>
        </div>
      ) : (
        <Empty>All trades of the last 24 hours were copied or did not need a copy.</Empty>
      )}
    </Panel>
  );
}

const groupOf = (item: Item) => `${item.reason.origin ?? ""}:${item.reason.code}`;

function collect({ refusals, failures, copiers }: BoardData, names: Names): Item[] {
  const followers = new Map(copiers.map((copier) => [copier.id, copier.follower_account_id]));
  const nameOf = (account: string | undefined) => (account && names.get(account)) || "a removed account";
  const decided = refusals.map((one) => ({
    key: `decision ${one.event_id} ${one.copier_id}`,
    at: one.decided_at,
    reason: explain(one.reason ?? "", "decision"),
    what: one.event
      ? [one.event.type, one.event.side, lots(one.event.lots), one.event.symbol].filter(Boolean).join(" ")
      : "a trade",
    follower: nameOf(followers.get(one.copier_id)),
    detail: one.detail,
  }));
  const executed = failures
    .filter((one) => one.reason && !NOTHING_TO_DO.includes(one.reason))
    .map((one) => ({
      key: `execution ${one.id}`,
      at: one.finalized_at ?? one.updated_at,
      reason: explain(one.reason ?? "", "execution"),
      what: `${one.action} ${one.side} ${lots(one.lots)} ${one.symbol}`,
      follower: nameOf(one.account_id),
      detail: one.message,
    }));
  return [...decided, ...executed].sort((a, b) => Date.parse(b.at) - Date.parse(a.at));
}
