"use client";
/** Live data: query, and query again after each broadcast. Its content is ignored; it only means: read again. */
import { useCallback, useEffect, useRef, useState } from "react";
import type { Project } from "./queries";

export type Socket = "joining" | "joined" | "down";
export type Live<T> = {
  data: T | null;
  loadedAt: number | null;
  error: Error | null;
  socket: Socket;
  refresh: () => void;
};

const POLL_MS = 15_000;
/** The minimum time between two loads, however many broadcasts arrive. */
const GAP_MS = 800;
const REJOIN_MS = 2_000;
const REJOIN_MAX_MS = 30_000;

/** Runs `load` at once, after broadcasts on `topic`, every 15 s, and when the page becomes visible; one at a time. */
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
  const socket = useBroadcasts(project, topic, refresh);

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

/** `refresh` during a load causes one more load afterwards, so that changes made meanwhile appear. */
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

  /** A load that is still running belongs to a board that no longer exists. */
  const stop = useCallback(() => {
    state.current = { running: false, again: false, generation: state.current.generation + 1 };
  }, []);

  return { refresh, stop };
}

/** Subscribes to a private topic; a broken channel is joined again for ever, with growing pauses. */
function useBroadcasts(project: Project, topic: string | null, onChanged: () => void): Socket {
  const [socket, setSocket] = useState<Socket>("joining");

  useEffect(() => {
    if (!topic) return;
    const { client } = project;
    let wanted = true;
    let failures = 0;
    let rejoin: ReturnType<typeof setTimeout> | undefined;
    let leave = () => {};

    const join = async () => {
      await client.realtime.setAuth(); // a private channel is authorised with the token at the join
      if (!wanted) return;
      let over = false;
      const channel = client.channel(topic, { config: { private: true } });
      leave = () => {
        over = true;
        void client.removeChannel(channel);
      };
      channel.on("broadcast", { event: "changed" }, () => document.hidden || onChanged());
      channel.subscribe((status) => {
        if (over) return;
        if (status === "SUBSCRIBED") {
          failures = 0;
          setSocket("joined");
          onChanged(); // changes before the join caused no broadcast here
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
  }, [project, topic, onChanged]);

  return socket;
}
