"use client";

import { useState } from "react";
import type { CopyFigures, Refused } from "../lib/copy-figures";
import { plural } from "../lib/format";
import { explain, ORIGINS, type Reason } from "../lib/reasons";
import { Age } from "./now";
import { Empty, Panel } from "./panel";
import { today } from "./today";
import { Icon } from "./tone";

type Names = ReadonlyMap<string, string>;

const SHOWN = 12;

/** Trades that were not copied, by reason: refused by a rule (no order was made), or by broker or agent. */
export function Refusals({ figures, names }: Readonly<{ figures: CopyFigures; names: Names }>) {
  const [chosen, setChosen] = useState<string | null>(null);
  const [all, setAll] = useState(false);
  const { notCopied, refused } = figures;
  const reasons = [...notCopied].sort(([, a], [, b]) => b - a);
  const known = chosen !== null && notCopied.has(chosen) ? chosen : null;
  const matching = known === null ? refused : refused.filter((one) => one.reason === known);
  const shown = all ? matching : matching.slice(0, SHOWN);

  return (
    <Panel
      title="Not copied, and why"
      aside={`${today(figures)}: ${plural(figures.trades.get("not_copied") ?? 0, "trade")}`}
    >
      {reasons.length ? (
        <div className="refusals">
          <ul className="reasons" aria-label="Reasons">
            {reasons.map(([code, count]) => {
              const reason = reasonOf(refused.find((one) => one.reason === code) ?? { reason: code, ordered: false });
              return (
                <li key={code} data-code={code}>
                  <button
                    type="button"
                    aria-pressed={code === known}
                    onClick={() => setChosen(code === known ? null : code)}
                  >
                    <b className="count" data-figure={`not_copied ${code}`}>
                      {count}
                    </b>
                    <span>
                      {reason.what}
                      {reason.origin ? <span className="by"> {ORIGINS[reason.origin]}</span> : null}
                      {reason.todo ? <span className="sub todo">{reason.todo}</span> : null}
                    </span>
                  </button>
                </li>
              );
            })}
          </ul>
          <div>
            <ol
              className="list"
              aria-label={
                known === null ? "All refusals" : `Refusals of one reason, ${plural(matching.length, "trade")}`
              }
            >
              {shown.map((item) => (
                <li key={item.key} data-code={item.reason}>
                  <Icon tone="warn" />
                  <span className="what">
                    {item.what} <span className="to">for {names.get(item.account) ?? "a removed account"}</span>
                    <span className="sub">{item.detail ?? reasonOf(item).what}</span>
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
        <Empty>All trades of today were copied or did not need a copy.</Empty>
      )}
    </Panel>
  );
}

const reasonOf = ({ reason, ordered }: Pick<Refused, "reason" | "ordered">): Reason =>
  explain(reason, ordered ? "execution" : "decision");
