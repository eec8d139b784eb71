"use client";

import { useState } from "react";
import { atMost } from "../lib/format";
import { ALERTS, type Alert, type BoardData, type User } from "../lib/queries";
import type { Tone } from "../lib/tone";
import { Age } from "./now";
import { Panel } from "./panel";
import { Icon } from "./tone";

type Names = ReadonlyMap<string, string>;
/** Marks the alert as seen. Returns null, or the error message for the user. */
type Mark = (alert: number) => Promise<string | null>;
/** Marks all of them together. */
type MarkAll = (alerts: readonly number[]) => Promise<string | null>;
type Props = { user: User; board: BoardData; names: Names; onSeen: Mark; onAllSeen: MarkAll };

/** Alerts that have not been marked as seen. Without any, there is no panel. */
export function Alerts({ user, board, names, onSeen, onAllSeen }: Readonly<Props>) {
  if (!board.alerts.length) return null;
  // operators read everybody's alerts, but answer for their own and for those that are for operators
  const own = board.alerts.filter((alert) => alert.user_id === null || alert.user_id === user.id);
  return (
    <Panel title="Alerts" aside={`unread: ${atMost(board.alerts.length, ALERTS)}`}>
      {own.length > 1 ? <AllSeen alerts={own.map((alert) => alert.id)} onAllSeen={onAllSeen} /> : null}
      <ul className="list" aria-label="Alerts">
        {board.alerts.map((alert) => (
          <AlertRow key={alert.id} alert={alert} about={aboutWhat(alert, board, names)} onSeen={onSeen} />
        ))}
      </ul>
    </Panel>
  );
}

/** The subject of an alert: an account, or for operators a VPS or the whole installation. */
function aboutWhat({ account_id, vps_id }: Alert, { vpses }: BoardData, names: Names): string {
  if (account_id !== null) return names.get(account_id) ?? "a removed account";
  if (vps_id === null) return "the whole installation";
  return vpses.find((vps) => vps.id === vps_id)?.name ?? "a retired VPS";
}

function AllSeen({ alerts, onAllSeen }: Readonly<{ alerts: readonly number[]; onAllSeen: MarkAll }>) {
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<string | null>(null);
  const mark = async () => {
    setBusy(true);
    setFailure(await onAllSeen(alerts));
    setBusy(false);
  };
  return (
    <p>
      <button type="button" className="quiet" disabled={busy} onClick={mark}>
        {`Mark all ${alerts.length} as seen`}
      </button>
      {failure ? (
        <span className="sub why" role="alert">
          {failure}
        </span>
      ) : null}
    </p>
  );
}

function AlertRow({ alert, about, onSeen }: Readonly<{ alert: Alert; about: string; onSeen: Mark }>) {
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<string | null>(null);
  const mark = async () => {
    setBusy(true);
    setFailure(await onSeen(alert.id));
    setBusy(false);
  };
  return (
    <li data-kind={alert.kind} data-code={alert.reason}>
      <Icon tone={toneOf(alert.severity)} />
      <span className="what">
        {alert.message}
        <span className="sub">
          {alert.severity} · {about} · <Age at={alert.created_at} />
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
