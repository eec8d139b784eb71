"use client";

import { useState } from "react";
import { atMost } from "../lib/format";
import { ALERTS, type Alert, type BoardData } from "../lib/queries";
import type { Tone } from "../lib/tone";
import { Age } from "./now";
import { Panel } from "./panel";
import { Icon } from "./tone";

type Names = ReadonlyMap<string, string>;
/** Tells the project; the answer is null, or what to tell the person. */
type Mark = (alert: number) => Promise<string | null>;
type Props = { board: BoardData; names: Names; onSeen: Mark };

/** What a person has to know of an account, until somebody says to have seen it. Nothing to tell: no panel. */
export function Alerts({ board, names, onSeen }: Readonly<Props>) {
  if (!board.alerts.length) return null;
  return (
    <Panel title="Alerts" aside={`not seen yet: ${atMost(board.alerts.length, ALERTS)}`}>
      <ul className="list" aria-label="Alerts">
        {board.alerts.map((alert) => (
          <Told key={alert.id} alert={alert} account={names.get(alert.account_id) ?? "a removed account"} onSeen={onSeen} />
        ))}
      </ul>
    </Panel>
  );
}

function Told({ alert, account, onSeen }: Readonly<{ alert: Alert; account: string; onSeen: Mark }>) {
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<string | null>(null);
  const mark = async () => {
    setBusy(true);
    setFailure(await onSeen(alert.id));
    setBusy(false);
  };
  return (
    <li>
      <Icon tone={toneOf(alert.severity)} />
      <span className="what">
        {alert.message}
        <span className="sub">
          {alert.severity} · {account} · <code>{alert.kind}</code> <code>{alert.reason}</code> · <Age at={alert.created_at} />
          {alert.times > 1 ? (
            <>
              , {alert.times} times, last <Age at={alert.updated_at} />
            </>
          ) : null}
        </span>
        {failure ? (
          <span className="sub why" role="alert">
            {failure}
          </span>
        ) : null}
      </span>
      <button type="button" className="quiet" disabled={busy} onClick={mark} aria-label={`Seen: ${alert.message}`}>
        Seen
      </button>
    </li>
  );
}

const toneOf = (severity: string): Tone => (severity === "critical" ? "bad" : severity === "warning" ? "warn" : "idle");
