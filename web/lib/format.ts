const AMOUNT = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const LOTS = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 8 });
const PRICE = new Intl.NumberFormat("en", { maximumSignificantDigits: 9, useGrouping: false });
const CLOCK = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

/** "now", "4 s", "12 min", "3 h", "5 d" */
export function age(ms: number): string {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 1) return "now";
  if (s < 90) return `${s} s`;
  if (s < 5_400) return `${Math.round(s / 60)} min`;
  return s < 129_600 ? `${Math.round(s / 3_600)} h` : `${Math.round(s / 86_400)} d`;
}

/** Milliseconds with the significant digits only: "0.8", "6.4", "120", "4 300". */
export function milliseconds(ms: number | null): string {
  if (ms === null) return "–";
  return ms < 10 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en").replaceAll(",", " ");
}

export const amount = (value: number | null) => (value === null ? "–" : AMOUNT.format(value));
export const lots = (value: number | null) => (value === null ? "–" : LOTS.format(value));
/** The price's own digits, without the floating-point remainder of an average: "0.00000001", never "1e-8". */
export const price = (value: number) => PRICE.format(Number(value));
export const percent = (value: number | null) => (value === null ? "–" : `${Math.round(value)} %`);
export const moment = (at: string) => CLOCK.format(new Date(at));
export const plural = (n: number, one: string, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;
/** A count that is capped at `limit`: "200+". */
export const atMost = (n: number, limit: number) => (n >= limit ? `${limit}+` : String(n));
/** The name of a VPS whose row this user may not read. */
export const shortId = (id: string) => `VPS ${id.slice(0, 8)}`;
