import { measured, STAGES, spread } from "../lib/figures";
import { milliseconds } from "../lib/format";
import type { Execution } from "../lib/queries";
import { Empty, Panel } from "./panel";

/** Total latency, and the median of each stage as one bar. */
export function Latency({ executions }: Readonly<{ executions: readonly Execution[] }>) {
  const times = measured(executions);
  const total = spread(times.map((one) => one.total));
  if (!total) {
    return (
      <Panel title="Latency">
        <Empty>No trade was copied yet.</Empty>
      </Panel>
    );
  }
  const stages = STAGES.map((stage) => ({ ...stage, p50: spread(times.map((one) => one[stage.key]))?.p50 ?? 0 }));
  const sum = stages.reduce((so_far, stage) => so_far + stage.p50, 0) || 1;
  return (
    <Panel title="Latency" aside={total.n === 1 ? "the last copy" : `the last ${total.n} copies`}>
      <dl className="percentiles">
        {(["p50", "p95", "p99", "max"] as const).map((name) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>
              {milliseconds(total[name])}
              <span className="unit"> ms</span>
            </dd>
          </div>
        ))}
      </dl>
      <div className="stages" aria-hidden="true">
        {stages.map((stage) => (
          <span key={stage.key} className={stage.key} style={{ flexGrow: Math.max(stage.p50 / sum, 0.01) }} />
        ))}
      </div>
      <ul className="legend" aria-label="Median of each stage">
        {stages.map((stage) => (
          <li key={stage.key} title={stage.hint}>
            <i className={`swatch ${stage.key}`} aria-hidden="true" /> {stage.label} <b>{milliseconds(stage.p50)} ms</b>
          </li>
        ))}
      </ul>
      <p className="fine">From the detection of the master's change to sending the follower's order to the broker.</p>
    </Panel>
  );
}
