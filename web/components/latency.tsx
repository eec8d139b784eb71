import { type CopyFigures, PERCENTILES, type Spread } from "../lib/copy-figures";
import { STAGES } from "../lib/figures";
import { milliseconds } from "../lib/format";
import { Empty, Panel } from "./panel";

/** Both latencies, and the median of each stage, to scale. */
export function Latency({ figures }: Readonly<{ figures: CopyFigures }>) {
  const { ours, whole, stages, latest } = figures;
  if (!ours) {
    return (
      <Panel title="Latency">
        <Empty>No trade was copied yet today.</Empty>
      </Panel>
    );
  }
  return (
    <Panel title="Latency" aside={population(ours.n, latest, figures.zone)}>
      <Sum
        name="whole"
        title={whole ? "From the master's fill to your fill" : "No broker reported when it filled the master's order"}
        found={whole}
      />
      <Sum
        name="ours"
        title="From the moment the master's agent saw the change until your order was sent"
        found={ours}
      />
      <div className="stages" aria-hidden="true">
        {STAGES.map(({ key }) => (
          <span key={key} className={key} style={{ flexGrow: Math.max(stages[key] ?? 0, 0.01) }} />
        ))}
      </div>
      <ul className="legend" aria-label="Median of each stage">
        {STAGES.map(({ key, hint }) => (
          <li key={key} title={stages[key] === null ? `Not known: ${hint}` : hint}>
            <i className={`swatch ${key}`} aria-hidden="true" /> {key} <b data-stage={key}>{ms(stages[key])}</b>
          </li>
        ))}
      </ul>
      <p className="fine">
        Medians of each stage, to scale; they do not add up to the median of the whole. Ours is request to lane.
      </p>
    </Panel>
  );
}

function Sum({ name, title, found }: Readonly<{ name: "whole" | "ours"; title: string; found: Spread | null }>) {
  return (
    <dl className={`percentiles ${name}`} title={title}>
      {PERCENTILES.map((share) => (
        <div key={share}>
          <dt>
            {name} {share}
          </dt>
          <dd>
            <span data-figure={name === "ours" ? share : `whole ${share}`}>
              {milliseconds(found ? found[share] : null)}
            </span>
            <span className="unit"> ms</span>
          </dd>
        </div>
      ))}
    </dl>
  );
}

function population(n: number, latest: number, zone: string): string {
  if (n === 1) return `the only order of today in ${zone}`;
  return n >= latest ? `the last ${n} orders` : `the ${n} orders of today in ${zone}`;
}

const ms = (value: number | null) => (value === null ? "–" : `${milliseconds(value)} ms`);
