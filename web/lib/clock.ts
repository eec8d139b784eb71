/** Smaller corrections are due to the resolution of the Date header, not to the clock. */
const TRUSTED_MS = 2_000;

/** The server's time, used for ages: a device's clock may be minutes off. Measured with every response. */
export class ServerClock {
  private offset = 0;

  /** `date`: the response's Date header (whole seconds); `sent` and `heard`: local times of request and response. */
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
