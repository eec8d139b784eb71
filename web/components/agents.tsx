"use client";

import { percent, plural, shortId } from "../lib/format";
import type { Account, BoardData, Vps } from "../lib/queries";
import { vpsTone } from "../lib/tone";
import { isLeaseOver } from "../lib/verdict";
import { Age, useNow } from "./now";
import { Empty, Panel } from "./panel";
import { Status } from "./tone";

/** Operators see the VPSes; other users see the VPSes of their own accounts. */
export function Agents({ board }: Readonly<{ board: BoardData }>) {
  const homes = new Map(board.assignments.map((assignment) => [assignment.account_id, assignment.vps_id]));
  const guests = Map.groupBy(board.accounts, (account) => homes.get(account.id) ?? "");
  return board.operator ? <Farm vpses={board.vpses} guests={guests} /> : <Homes guests={guests} />;
}

type Guests = ReadonlyMap<string, readonly Account[]>;

function Farm({ vpses, guests }: Readonly<{ vpses: readonly Vps[]; guests: Guests }>) {
  return (
    <Panel title="Agents" aside={plural(vpses.length, "VPS", "VPSes")}>
      {vpses.length ? (
        <table>
          <thead>
            <tr>
              <th scope="col">VPS</th>
              <th scope="col">Status</th>
              <th scope="col" className="number">
                Accounts
              </th>
              <th scope="col" className="number">
                Heartbeat
              </th>
              <th scope="col" className="number wide">
                Lease
              </th>
              <th scope="col" className="gauge wide">
                CPU
              </th>
              <th scope="col" className="gauge wide">
                Memory
              </th>
            </tr>
          </thead>
          <tbody>
            {vpses.map((vps) => (
              <FarmRow key={vps.id} vps={vps} accounts={guests.get(vps.id)?.length ?? 0} />
            ))}
          </tbody>
        </table>
      ) : (
        <Empty>
          No VPS is enrolled. Create a one-time enrolment token, then run “tradecopier agent enroll” on the VPS.
        </Empty>
      )}
    </Panel>
  );
}

function FarmRow({ vps, accounts }: Readonly<{ vps: Vps; accounts: number }>) {
  const now = useNow();
  const over = isLeaseOver(vps, now);
  const left = Math.round((Date.parse(vps.lease_expires_at) - now) / 1000);
  return (
    <tr>
      <th scope="row">
        {vps.name}
        <span className="sub">
          {[vps.region, vps.agent_version ? `version ${vps.agent_version}` : "not connected yet"]
            .filter(Boolean)
            .join(" · ")}
          {vps.rss_mb === null ? "" : ` · ${Math.round(vps.rss_mb)} MB`}
        </span>
      </th>
      <td>
        <Status tone={vpsTone(vps.status, over)}>
          {over && vps.status === "online" ? "lease expired" : vps.status}
        </Status>
      </td>
      <td className="number">
        {accounts} <span className="of">of {vps.capacity}</span>
      </td>
      <td className="number">
        <Age at={vps.last_heartbeat_at} />
        {vps.rtt_ms === null ? null : <span className="sub wide">{vps.rtt_ms.toFixed(1)} ms round trip</span>}
      </td>
      <td className="number wide">{vps.status === "enrolled" ? "–" : left > 0 ? `${left} s left` : "expired"}</td>
      <td className="gauge wide">
        <Meter label="CPU" value={vps.cpu_percent} />
      </td>
      <td className="gauge wide">
        <Meter label="Memory" value={vps.memory_percent} />
      </td>
    </tr>
  );
}

function Meter({ label, value }: Readonly<{ label: string; value: number | null }>) {
  return (
    <span className="meter">
      <span>{percent(value)}</span>
      {value === null ? null : <meter min={0} max={100} high={85} value={value} aria-label={label} />}
    </span>
  );
}

function Homes({ guests }: Readonly<{ guests: Guests }>) {
  const homes = [...guests].sort(([a], [b]) => a.localeCompare(b));
  return (
    <Panel title="Agents" aside="VPSes of your accounts">
      {homes.length ? (
        <table>
          <thead>
            <tr>
              <th scope="col">VPS</th>
              <th scope="col">Your accounts</th>
              <th scope="col" className="number">
                Last seen
              </th>
            </tr>
          </thead>
          <tbody>
            {homes.map(([vps, accounts]) => {
              const connected = accounts.filter((account) => account.status === "connected").length;
              const resting = accounts.every(({ status }) => status === "connected" || status === "weekend");
              const tone = connected === accounts.length ? "ok" : resting ? "idle" : connected || !vps ? "warn" : "bad";
              const seen = accounts.map((account) => account.seen_at).filter((at) => at !== null);
              return (
                <tr key={vps}>
                  <th scope="row">{vps ? shortId(vps) : "not assigned"}</th>
                  <td>
                    <Status tone={tone}>
                      {connected} of {plural(accounts.length, "account")} connected
                    </Status>
                  </td>
                  <td className="number">
                    <Age at={seen.sort().at(-1) ?? null} />
                  </td>
                </tr>
              );
            })}
          </tbody>
        </table>
      ) : (
        <Empty>When you connect an account, its VPS is shown here.</Empty>
      )}
    </Panel>
  );
}
