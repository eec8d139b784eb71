"use client";

import { useState } from "react";
import { STAGES, type Times, timesOf } from "../lib/figures";
import { atMost, lots, milliseconds } from "../lib/format";
import { EXECUTIONS, type Execution } from "../lib/queries";
import { explain } from "../lib/reasons";
import { executionTone } from "../lib/tone";
import { Age, useNow } from "./now";
import { Empty, Panel } from "./panel";
import { Status } from "./tone";

const SHOWN = 20;

type Names = ReadonlyMap<string, string>;

export function Executions({ executions, names }: Readonly<{ executions: readonly Execution[]; names: Names }>) {
  const [all, setAll] = useState(false);
  const shown = all ? executions : executions.slice(0, SHOWN);
  return (
    <Panel title="Executions" aside={<Rate executions={executions} />}>
      {executions.length ? (
        <>
          <table className="executions">
            <thead>
              <tr>
                <th scope="col">Order</th>
                <th scope="col" className="wide">
                  Follower
                </th>
                <th scope="col">Status</th>
                <th scope="col" className="number" title="From the master's fill to the follower's fill">
                  Whole, ms
                </th>
                <th
                  scope="col"
                  className="number wide"
                  title="From the moment the master's agent saw the change until the order was sent"
                >
                  Ours, ms
                </th>
                <th scope="col" className="number wide">
                  Age
                </th>
              </tr>
            </thead>
            <tbody>
              {shown.map((execution) => (
                <ExecutionRow
                  key={execution.id}
                  execution={execution}
                  follower={names.get(execution.account_id) ?? "a removed account"}
                />
              ))}
            </tbody>
          </table>
          {executions.length > SHOWN ? (
            <button type="button" className="quiet more" onClick={() => setAll(!all)}>
              {all ? `Show the newest ${SHOWN}` : `Show all ${executions.length}`}
            </button>
          ) : null}
        </>
      ) : (
        <Empty>No trade was copied yet. The next trade of a master appears here within a second.</Empty>
      )}
    </Panel>
  );
}

function Rate({ executions }: Readonly<{ executions: readonly Execution[] }>) {
  const now = useNow();
  const recent = executions.filter((execution) => Date.parse(execution.queued_at) > now - 60_000);
  return (
    <>
      the last {executions.length} orders, newest first · {atMost(recent.length, EXECUTIONS)} of them in the last minute
    </>
  );
}

/** A close shows what it closed. */
function volumeOf({ action, status, lots: ordered, filled_lots }: Execution): number {
  const closed = status === "completed" && (action === "close" || action === "reduce");
  return closed ? (filled_lots ?? ordered) : ordered;
}

function ExecutionRow({ execution, follower }: Readonly<{ execution: Execution; follower: string }>) {
  const times = timesOf(execution);
  return (
    <tr data-execution={execution.id}>
      <th scope="row">
        <span className="order">
          {execution.action} <span className={execution.side}>{execution.side}</span> {lots(volumeOf(execution))}{" "}
          {execution.symbol}
        </span>
        <span className="sub narrow">
          {follower} · <Age at={execution.queued_at} />
        </span>
      </th>
      <td className="wide">{follower}</td>
      <td>
        <Status tone={executionTone(execution.status)}>
          {execution.status}
          {execution.attempt > 1 ? `, attempt ${execution.attempt}` : ""}
        </Status>
        {execution.reason ? (
          <span className="sub" title={execution.message ?? undefined}>
            {explain(execution.reason, "execution").what}
          </span>
        ) : null}
        {execution.adopted ? <span className="sub">found at the broker and adopted</span> : null}
      </td>
      <td className="number total" title={stagesOf(times)}>
        {milliseconds(times?.whole ?? null)}
      </td>
      <td className="number wide" title={stagesOf(times)}>
        {milliseconds(times?.ours ?? null)}
      </td>
      <td className="number wide">
        <Age at={execution.queued_at} />
      </td>
    </tr>
  );
}

/** The stages of one order in words; why there are none. */
function stagesOf(times: Times | null): string {
  if (!times) return "No event of a master caused this order, or nothing is known yet: it has no latency";
  return STAGES.map((stage) => `${stage.key} ${milliseconds(times[stage.key])}`).join(" · ");
}
