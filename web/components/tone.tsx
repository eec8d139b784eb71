import type { ReactNode } from "react";
import type { Tone } from "../lib/tone";

const SHAPES: Readonly<Record<Tone, ReactNode>> = {
  ok: (
    <>
      <circle cx="8" cy="8" r="7" />
      <path className="mark" d="M4.8 8.3l2.2 2.2 4.2-4.8" />
    </>
  ),
  warn: (
    <>
      <path d="M8 .9l7.4 13.4H.6z" />
      <path className="mark" d="M8 5.8v4M8 12v.2" />
    </>
  ),
  bad: (
    <>
      <path d="M4.9.8h6.2l4.1 4.1v6.2l-4.1 4.1H4.9L.8 11.1V4.9z" />
      <path className="mark" d="M5.4 5.4l5.2 5.2M10.6 5.4l-5.2 5.2" />
    </>
  ),
  idle: (
    <>
      <circle className="ring" cx="8" cy="8" r="6" />
      <path className="mark" d="M5 8h6" />
    </>
  ),
};

/** Each tone has its own shape, so that it is visible without colour; the text next to it says the same. */
export function Icon({ tone }: Readonly<{ tone: Tone }>) {
  return (
    <svg className={`icon ${tone}`} viewBox="0 0 16 16" aria-hidden="true">
      {SHAPES[tone]}
    </svg>
  );
}

export function Status({ tone, children }: Readonly<{ tone: Tone; children: ReactNode }>) {
  return (
    <span className={`status ${tone}`}>
      <Icon tone={tone} />
      {children}
    </span>
  );
}
