"use client";

import { useState } from "react";
import { amount, atMost, lots, milliseconds, price } from "../lib/format";
import { TRADES, type Trade } from "../lib/queries";
import { explain, explainWarning, resultWords } from "../lib/reasons";
import { tradeTone } from "../lib/tone";
import { Age } from "./now";
import { Empty, Panel } from "./panel";
import { Status } from "./tone";

const SHOWN = 12;

type Names = ReadonlyMap<string, string>;

/** The result of each master trade for each follower: filled at which price and slippage, or why not copied. */
export function Trades({ trades, names }: Readonly<{ trades: readonly Trade[]; names: Names }>) {
  const [all, setAll] = useState(false);
  const shown = all ? trades : trades.slice(0, SHOWN);
  return (
    <Panel title="Trades" aside={`the last ${atMost(trades.length, TRADES)} trades, newest first`}>
      {trades.length ? (
        <>
          <table className="trades">
            <thead>
              <tr>
                <th
                  scope="col"
                  title="What the master did, and its lots afterwards; of a close or a reduction the lots that the copy closed"
                >
                  Trade
                </th>
                <th scope="col" className="wide">
                  Follower
                </th>
                <th scope="col">Result</th>
                <th scope="col" className="number wide">
                  Filled
                </th>
                <th
                  scope="col"
                  className="number"
                  title="By how much the follower's price was worse than the master's; negative: better"
                >
                  Slippage
                </th>
                <th
                  scope="col"
                  className="number wide"
                  title="From the master's fill to the follower's fill; below: from seen to sent"
                >
                  Whole, ms
                </th>
                <th scope="col" className="number wide">
                  Age
                </th>
              </tr>
            </thead>
            <tbody>
              {shown.map((trade) => (
                <TradeRow
                  key={`${trade.event_id} ${trade.copier_id}`}
                  trade={trade}
                  follower={(trade.follower_account_id && names.get(trade.follower_account_id)) || "a removed account"}
                />
              ))}
            </tbody>
          </table>
          {trades.length > SHOWN ? (
            <button type="button" className="quiet more" onClick={() => setAll(!all)}>
              {all ? `Show the newest ${SHOWN}` : `Show all ${trades.length}`}
            </button>
          ) : null}
        </>
      ) : (
        <Empty>No master has traded yet. For every trade of a master, the result for each follower appears here.</Empty>
      )}
    </Panel>
  );
}

function TradeRow({ trade, follower }: Readonly<{ trade: Trade; follower: string }>) {
  const reason = trade.reason ? explain(trade.reason, trade.orders ? "execution" : "decision") : null;
  // the master's lots are 0 after a close, and say nothing of the copy
  const closes = trade.event === "closed" || trade.event === "reduced";
  const volume = closes ? trade.closed_lots : trade.master_lots;
  return (
    <tr data-trade={`${trade.event_id}:${trade.copier_id}`}>
      <th scope="row">
        <span className="order">
          {trade.event} <span className={trade.master_side ?? undefined}>{trade.master_side}</span>{" "}
          {volume === null ? "" : `${lots(volume)} `}
          {trade.master_symbol}
        </span>
        <span className="sub narrow">{follower}</span>
      </th>
      <td className="wide">{follower}</td>
      <td>
        <Status tone={tradeTone(trade.status)}>{resultWords(trade.status)}</Status>
        {reason ? (
          <span className="sub" title={trade.detail ?? trade.message ?? undefined} data-code={reason.code}>
            {reason.what}
            {reason.todo ? `; ${reason.todo}` : ""}
          </span>
        ) : null}
        {trade.warnings?.map((code) => (
          <span className="sub" key={code} data-code={code}>
            {explainWarning(code)}
          </span>
        ))}
      </td>
      <td className="number wide">
        {trade.filled_lots ? (
          <>
            {lots(trade.filled_lots)}
            <span className="sub">{trade.fill_price === null ? "" : `at ${price(trade.fill_price)}`}</span>
          </>
        ) : (
          "–"
        )}
      </td>
      <td className="number">
        {trade.slippage_points === null ? "–" : `${Math.round(trade.slippage_points * 10) / 10} points`}
        {trade.slippage_money === null ? null : (
          <span className="sub">
            {amount(trade.slippage_money)} {trade.currency}
          </span>
        )}
      </td>
      <td className="number wide">
        {milliseconds(exact(trade.whole_ms))}
        {trade.ours_ms === null ? null : <span className="sub">ours {milliseconds(exact(trade.ours_ms))}</span>}
      </td>
      <td className="number wide">{trade.decided_at ? <Age at={trade.decided_at} /> : "–"}</td>
    </tr>
  );
}

/** A decimal number may arrive as text. */
const exact = (value: number | null) => (value === null ? null : Number(value));
