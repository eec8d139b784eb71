/** Corrections under this are the resolution of the Date header, not an error of the clock. */
const TRUSTED_MS = 2_000;

/** The server's time, for ages: the clock of a phone or laptop may be minutes off. Measured at every answer. */
export class ServerClock {
  private offset = 0;

  /** `date` is the answer's Date header (whole seconds), `sent` and `heard` are the local times around it. */
  hear(date: string | null, sent: number, heard: number): void {
    const said = date ? Date.parse(date) : Number.NaN;
    if (Number.isNaN(said)) return;
    const offset = said + 500 - (sent + heard) / 2;
    this.offset = Math.abs(offset) < TRUSTED_MS ? 0 : offset;
  }

  now(): number {
    return Date.now() + this.offset;
  }
}
