"use client";

import { useCallback, useEffect, useMemo, useState } from "react";
import {
  type BoardData,
  isOperator,
  markAlertSeen,
  markAlertsSeen,
  type Project,
  QueryFailed,
  readBoard,
  readUnexplained,
  signOut,
  type Unexplained,
  type User,
} from "../lib/queries";
import { type Live, useLive } from "../lib/use-live";
import { Accounts } from "./accounts";
import { Agents } from "./agents";
import { Alerts } from "./alerts";
import { Executions } from "./executions";
import { Latency } from "./latency";
import { Notice } from "./notice";
import { NowProvider } from "./now";
import { Refusals } from "./refusals";
import { Today } from "./today";
import { TopRow } from "./top-row";
import { Trades } from "./trades";

/** The minimum time between two runs of the slow query, however many broadcasts arrive. */
const UNEXPLAINED_MS = 15_000;

type Props = { project: Project; user: User };
type Loaded = { board: BoardData; unexplained: Unexplained };

export function Board({ project, user }: Readonly<Props>) {
  const { topic, load } = useQuestions(project, user);
  const live = useLive(project, topic, load);
  const leave = useCallback(() => void signOut(project), [project]);

  const { refresh } = live;
  const onSeen = useCallback(
    async (alert: number) => {
      const failure = await markAlertSeen(project, alert);
      refresh();
      return failure;
    },
    [project, refresh],
  );

  const onAllSeen = useCallback(
    async (alerts: readonly number[]) => {
      const failure = await markAlertsSeen(project, alerts);
      refresh();
      return failure;
    },
    [project, refresh],
  );

  const over = live.error instanceof QueryFailed && live.error.signedOut;
  useEffect(() => {
    if (over) leave();
  }, [over, leave]);

  if (!live.data) {
    if (!live.error)
      return <Notice tone="idle" title="Loading the board" text="Loading agents, accounts and executions." />;
    return (
      <Notice
        tone="bad"
        title="The board could not be loaded"
        text={live.error.message}
        action="Try again"
        onAction={live.refresh}
      />
    );
  }
  return (
    <NowProvider clock={project.clock}>
      <Header user={user} live={live} operator={live.data.board.operator} onLeave={leave} />
      <main className={live.error ? "board old" : "board"}>
        <TopRow live={live} board={live.data.board} unexplained={live.data.unexplained} />
        <Panels user={user} board={live.data.board} onSeen={onSeen} onAllSeen={onAllSeen} />
      </main>
    </NowProvider>
  );
}

function useQuestions(project: Project, user: User) {
  const [operator, setOperator] = useState<boolean | null>(null);
  const load = useMemo(() => {
    let known: boolean | null = null;
    let unexplained: { rows: Unexplained; at: number } | null = null;
    return async (): Promise<Loaded> => {
      known ??= await isOperator(project, user);
      setOperator(known);
      const stale = !unexplained || Date.now() - unexplained.at > UNEXPLAINED_MS;
      const [board, rows] = await Promise.all([
        readBoard(project, user, known),
        stale ? readUnexplained(project) : null,
      ]);
      if (rows) unexplained = { rows, at: Date.now() };
      return { board, unexplained: unexplained?.rows ?? [] };
    };
  }, [project, user]);
  return { topic: operator === null ? null : operator ? "operators" : `user:${user.id}`, load };
}

function Header({
  user,
  live,
  operator,
  onLeave,
}: Readonly<{ user: User; live: Live<Loaded>; operator: boolean; onLeave: () => void }>) {
  const [word, explained] =
    live.socket === "joined"
      ? (["Live", "Changes appear immediately."] as const)
      : (["Every 15 s", "The live connection is down. The page refreshes every 15 seconds until it is back."] as const);
  return (
    <header className="bar">
      <h1>Trade copier</h1>
      <span className={`socket ${live.socket}`} title={explained} data-socket={live.socket}>
        <i aria-hidden="true" /> {live.socket === "joining" ? "Connecting" : word}
      </span>
      <span className="who">
        <span className="email">{user.email}</span>
        {operator ? <span className="badge">operator</span> : null}
      </span>
      <button type="button" className="quiet" onClick={onLeave}>
        Sign out
      </button>
    </header>
  );
}

type PanelProps = {
  user: User;
  board: BoardData;
  onSeen: (alert: number) => Promise<string | null>;
  onAllSeen: (alerts: readonly number[]) => Promise<string | null>;
};

/** The ages inside update themselves; the panels render again only when the data changes. */
function Panels({ user, board, onSeen, onAllSeen }: Readonly<PanelProps>) {
  const names = useMemo(() => new Map(board.accounts.map((account) => [account.id, account.name])), [board.accounts]);
  return (
    <>
      <Alerts user={user} board={board} names={names} onSeen={onSeen} onAllSeen={onAllSeen} />
      <div className="columns">
        <Agents board={board} />
        <Latency figures={board.figures} />
      </div>
      <Today figures={board.figures} />
      <Accounts board={board} />
      <Trades trades={board.trades} names={names} />
      <Executions executions={board.executions} names={names} />
      <Refusals figures={board.figures} names={names} />
    </>
  );
}
