import { type CopyFigures, PERCENTILES } from "../lib/copy-figures";
import { measured, STAGES, spread } from "../lib/figures";
import { milliseconds } from "../lib/format";
import type { Execution } from "../lib/queries";
import { Empty, Panel } from "./panel";

type Props = { figures: CopyFigures; executions: readonly Execution[] };

/** Total latency, and the median of each stage as one bar. */
export function Latency({ figures, executions }: Readonly<Props>) {
  const times = measured(executions);
  const { latency, latest } = figures;
  if (!latency) {
    return (
      <Panel title="Latency">
        <Empty>No trade was copied yet today.</Empty>
      </Panel>
    );
  }
  const stages = STAGES.map((stage) => ({ ...stage, p50: spread(times.map((one) => one[stage.key]))?.p50 ?? 0 }));
  const sum = stages.reduce((so_far, stage) => so_far + stage.p50, 0) || 1;
  return (
    <Panel title="Latency" aside={population(latency.n, latest, figures.zone)}>
      <dl className="percentiles">
        {PERCENTILES.map((name) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>
              <span data-figure={name}>{milliseconds(latency[name])}</span>
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

function population(n: number, latest: number, zone: string): string {
  if (n === 1) return `the only order of today in ${zone}`;
  return n >= latest ? `the last ${n} orders` : `the ${n} orders of today in ${zone}`;
}
