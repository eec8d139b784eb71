"use client";
/** Live data = query, doorbell, refetch. What a message carries is never looked at: it only says "ask again". */
import { useCallback, useEffect, useRef, useState } from "react";
import type { Project } from "./queries";

export type Socket = "joining" | "joined" | "down";
export type Live<T> = { data: T | null; loadedAt: number | null; error: Error | null; socket: Socket; refresh: () => void };

const POLL_MS = 15_000;
/** Two loads are at least this far apart, however often the bell rings. */
const GAP_MS = 800;
const REJOIN_MS = 2_000;
const REJOIN_MAX_MS = 30_000;

/** Runs `load` at once, when `topic` rings, every 15 s, and when the page is looked at again. One load at a time. */
export function useLive<T>(project: Project, topic: string | null, load: () => Promise<T>): Live<T> {
  const [data, setData] = useState<T | null>(null);
  const [loadedAt, setLoadedAt] = useState<number | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const { refresh, stop } = useSingleFlight(
    load,
    useCallback((result: T) => {
      setData(result);
      setLoadedAt(Date.now());
      setError(null);
    }, []),
    setError,
  );
  const socket = useDoorbell(project, topic, refresh);

  useEffect(() => {
    const onLook = () => document.hidden || refresh();
    refresh();
    const poll = setInterval(onLook, POLL_MS);
    document.addEventListener("visibilitychange", onLook);
    window.addEventListener("online", onLook);
    return () => {
      clearInterval(poll);
      document.removeEventListener("visibilitychange", onLook);
      window.removeEventListener("online", onLook);
      stop();
    };
  }, [refresh, stop]);

  return { data, loadedAt, error, socket, refresh };
}

/** `refresh` while a load runs makes one more load afterwards, so that what happened meanwhile is seen. */
function useSingleFlight<T>(load: () => Promise<T>, onResult: (result: T) => void, onError: (error: Error) => void) {
  const state = useRef({ running: false, again: false, generation: 0 });

  const refresh = useCallback(() => {
    const now = state.current;
    if (now.running) {
      now.again = true;
      return;
    }
    now.running = true;
    const generation = now.generation;
    const current = () => generation === state.current.generation;
    load()
      .then(
        (result) => current() && onResult(result),
        (error: unknown) => current() && onError(error instanceof Error ? error : new Error(String(error))),
      )
      .then(() => new Promise((done) => setTimeout(done, GAP_MS)))
      .then(() => {
        if (!current()) return;
        now.running = false;
        if (now.again) {
          now.again = false;
          refresh();
        }
      });
  }, [load, onResult, onError]);

  /** What is still under way belongs to a board that is gone. */
  const stop = useCallback(() => {
    state.current = { running: false, again: false, generation: state.current.generation + 1 };
  }, []);

  return { refresh, stop };
}

/** Listens to a private topic; a channel that breaks is built anew, with growing pauses, for ever. */
function useDoorbell(project: Project, topic: string | null, ring: () => void): Socket {
  const [socket, setSocket] = useState<Socket>("joining");

  useEffect(() => {
    if (!topic) return;
    const { client } = project;
    let wanted = true;
    let failures = 0;
    let rejoin: ReturnType<typeof setTimeout> | undefined;
    let leave = () => {};

    const join = async () => {
      await client.realtime.setAuth(); // a private channel is judged by the token at the join
      if (!wanted) return;
      let over = false;
      const channel = client.channel(topic, { config: { private: true } });
      leave = () => {
        over = true;
        void client.removeChannel(channel);
      };
      channel.on("broadcast", { event: "changed" }, () => document.hidden || ring());
      channel.subscribe((status) => {
        if (over) return;
        if (status === "SUBSCRIBED") {
          failures = 0;
          setSocket("joined");
          ring(); // what changed before the join rang no bell here
          return;
        }
        leave();
        again();
      });
    };
    const again = () => {
      setSocket("down");
      const pause = Math.min(REJOIN_MAX_MS, REJOIN_MS * 2 ** failures) * (0.5 + Math.random() / 2);
      failures += 1;
      clearTimeout(rejoin);
      rejoin = setTimeout(() => join().catch(again), pause);
    };
    join().catch(again);

    return () => {
      wanted = false;
      clearTimeout(rejoin);
      leave();
    };
  }, [project, topic, ring]);

  return socket;
}
