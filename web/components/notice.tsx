import type { Tone } from "../lib/tone";
import { Icon } from "./tone";

type Props = { tone: Tone; title: string; text: string; action?: string; onAction?: () => void };

/** A page with a single message. */
export function Notice({ tone, title, text, action, onAction }: Readonly<Props>) {
  return (
    <main className="alone" aria-busy={tone === "idle"}>
      <div className="card notice" role={tone === "bad" ? "alert" : "status"}>
        <h1>
          <Icon tone={tone} /> {title}
        </h1>
        <p>{text}</p>
        {action ? (
          <button type="button" onClick={onAction}>
            {action}
          </button>
        ) : null}
      </div>
    </main>
  );
}
