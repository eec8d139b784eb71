"use client";

import { plural } from "../lib/format";
import type { BoardData, Unexplained } from "../lib/queries";
import type { Live } from "../lib/use-live";
import { withUnexplained } from "../lib/verdict";
import { Age, useNow } from "./now";
import { Icon } from "./tone";

/** Data older than this counts as out of date: the page refreshes every 15 s, and a request takes at most 12 s. */
const STALE_MS = 30_000;

type Props = { live: Live<unknown>; board: BoardData; unexplained: Unexplained };

/** Answers "Is anything wrong now?": one sentence, then each finding with its age. */
export function TopRow({ live, board, unexplained }: Readonly<Props>) {
  useNow(); // whether the data is out of date changes without any other reason to render
  const read = live.loadedAt === null ? null : new Date(live.loadedAt).toISOString();
  const stale = live.loadedAt !== null && Date.now() - live.loadedAt > STALE_MS;
  const verdict = withUnexplained(board.verdict, unexplained);
  const tone = stale || verdict.tone === "bad" ? "bad" : live.error ? "warn" : verdict.tone;
  const text = stale
    ? "The board is out of date: the figures below are old"
    : live.error
      ? `The last refresh failed. Before it: ${verdict.text}`
      : verdict.text;

  return (
    <section className={`verdict ${tone}`} aria-label="Is anything wrong now?" data-tone={tone}>
      <div className="sentence" role="status">
        <Icon tone={tone} />
        <strong>
          {text}
          {verdict.since && !stale ? (
            <>
              , <Age at={verdict.since} />
            </>
          ) : null}
          .
        </strong>
      </div>
      <p className="read">
        read <Age at={read} />
        {live.error || stale ? (
          <button type="button" className="link" onClick={live.refresh}>
            try again
          </button>
        ) : null}
      </p>
      {live.error ? <p className="why">{live.error.message}</p> : null}
      {!stale && verdict.findings.length > 1 ? (
        <ul aria-label={plural(verdict.findings.length, "finding")}>
          {verdict.findings.map((finding) => (
            <li key={finding.text}>
              <Icon tone={finding.tone} /> {finding.text}
              {finding.since ? (
                <>
                  , <Age at={finding.since} />
                </>
              ) : null}
            </li>
          ))}
        </ul>
      ) : null}
    </section>
  );
}
