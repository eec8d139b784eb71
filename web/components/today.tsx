import { type CopyFigures, sum, TRADE_RESULTS } from "../lib/copy-figures";
import { atMost } from "../lib/format";
import { resultWords } from "../lib/reasons";
import { Panel } from "./panel";

/** How many trades and orders came to what end today: the counts that terminal and JSON tell, too. */
export function Today({ figures }: Readonly<{ figures: CopyFigures }>) {
  const { trades, orders, rejected, success, most } = figures;
  const all = trades.get("all") ?? 0;
  return (
    <Panel title="Today" aside={`${today(figures)}, one trade per follower`}>
      <dl className="percentiles" aria-label="Trades">
        <Figure name="trades" label="trades" value={atMost(all, most)} />
        {TRADE_RESULTS.map((result) => (
          <Figure key={result} name={result} label={resultWords(result)} value={String(trades.get(result) ?? 0)} />
        ))}
      </dl>
      <dl className="percentiles" aria-label="Orders">
        <Figure name="completed" label="orders completed" value={String(orders.get("completed") ?? 0)} />
        <Figure name="rejected" label="rejected" value={String(sum(rejected))} />
        <Figure name="expired" label="expired" value={String(orders.get("expired") ?? 0)} />
        <Figure name="cancelled" label="cancelled" value={String(orders.get("cancelled") ?? 0)} />
        <Figure name="open" label="in flight" value={String(orders.get("open") ?? 0)} />
        <Figure
          name="success_rate"
          label="success rate"
          value={success === null ? "–" : `${Number((success * 100).toPrecision(4))} %`}
        />
      </dl>
    </Panel>
  );
}

function Figure({ name, label, value }: Readonly<{ name: string; label: string; value: string }>) {
  return (
    <div>
      <dt>{label}</dt>
      <dd data-figure={name}>{value}</dd>
    </div>
  );
}

/** The population of the figures, in words. */
export function today({ zone, trades, most }: CopyFigures): string {
  const newest = (trades.get("all") ?? 0) >= most ? `the newest ${most} trades of ` : "";
  return `${newest}today in ${zone}`;
}
