// The package logs an error with its statement and everything the client sent: a single request could write 200 kB.
const LONGEST = 300;
const LINES_PER_SECOND = 20;

function member(value: unknown, name: string): unknown {
  return typeof value === "object" && value !== null ? Reflect.get(value, name) : undefined;
}

function words(value: unknown): string {
  if (typeof value === "string") return value;
  const cause = member(value, "cause");
  const code = member(value, "code") ?? member(cause, "code");
  const message = member(value, "message") ?? member(cause, "message") ?? typeof value;
  return code === undefined ? String(message) : `${code} ${message}`;
}

// Writes one short line per call and at most a few per second. The next line states how many were left out.
export function sayBriefly(print: (line: string) => void): (...given: unknown[]) => void {
  let second = 0;
  let printed = 0;
  let leftOut = 0;
  return (...given) => {
    const now = Math.floor(performance.now() / 1000);
    if (now !== second) {
      second = now;
      printed = 0;
    }
    if (printed >= LINES_PER_SECOND) {
      leftOut += 1;
      return;
    }
    printed += 1;
    const note = leftOut > 0 ? `(${leftOut} errors left out) ` : "";
    leftOut = 0;
    // Also strips control characters, so that a client cannot forge a log line.
    const line = note + given.map((value) => words(value).slice(0, LONGEST)).join(" ");
    print(line.replace(/\p{Cc}+/gu, " ").slice(0, LONGEST));
  };
}
