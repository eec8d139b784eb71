"use client";

import { createContext, type ReactNode, useContext, useEffect, useState } from "react";
import type { ServerClock } from "../lib/clock";
import { age, moment } from "../lib/format";

const Now = createContext(0);

/** One clock for all ages on the page: they update together, once per second. */
export function NowProvider({ clock, children }: Readonly<{ clock: ServerClock; children: ReactNode }>) {
  const [now, setNow] = useState(() => clock.now());
  useEffect(() => {
    const tick = setInterval(() => setNow(clock.now()), 1000);
    return () => clearInterval(tick);
  }, [clock]);
  return <Now value={now}>{children}</Now>;
}

export const useNow = () => useContext(Now);

/** The time since `at`. A time that is less than a second ahead is shown as "now". */
export function Age({ at, ago = true }: Readonly<{ at: string | null; ago?: boolean }>) {
  const now = useNow();
  if (!at) return <span className="age">never</span>;
  const text = age(now - Date.parse(at));
  return (
    <time className="age" dateTime={at} title={moment(at)}>
      {ago && text !== "now" ? `${text} ago` : text}
    </time>
  );
}
