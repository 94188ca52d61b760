// Numbers as people read them: as fedlora/words.py writes them.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
export const NONE = "–";

/** Four significant digits; whole numbers stay whole. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e-", "e−").replace("e+", "e");
  return Number(value.toPrecision(4)).toString().replace("-", "−");
}

/** A figure between 0 and 1 keeps three decimals, so that a column of them is aligned. */
export function figure(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  return Math.abs(value) >= 1e-3 && Math.abs(value) < 100 ? value.toFixed(3).replace("-", "−") : number(value);
}

export function bytes(count) {
  if (count === null || count === undefined) return NONE;
  const power = count >= 1 ? Math.min(Math.floor(Math.log10(count) / 3 + 1e-9), UNITS.length - 1) : 0;
  return power ? `${Number((count / 1000 ** power).toPrecision(3))} ${UNITS[power]}` : `${Math.round(count)} B`;
}

export function seconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  if (value < 10) return `${Number(value.toPrecision(2))} s`;
  const whole = Math.round(value);
  if (whole < 120) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 120) return whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** A time that the server gives: UTC, with or without saying so. */
export function when(text) {
  if (!text) return null;
  return new Date(/Z|[+-]\d\d:?\d\d$/.test(text) ? text : `${text}Z`);
}

const SHORT = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const LONG = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

export const moment = (date) => (date ? SHORT.format(date) : NONE);
export const exact = (date) => (date ? LONG.format(date) : "");
export const clock = (date) => (date ? CLOCK.format(date) : NONE);

/** "12 s ago"; coarse, as it is looked at. */
export function ago(date) {
  if (!date) return NONE;
  const past = Math.max(0, (Date.now() - date.getTime()) / 1000);
  if (past < 5) return "just now";
  if (past < 120) return `${Math.round(past)} s ago`;
  if (past < 7200) return `${Math.round(past / 60)} min ago`;
  if (past < 172800) return `${Math.round(past / 3600)} h ago`;
  return `${Math.round(past / 86400)} d ago`;
}

/** "in 12 days", or "3 h ago". */
export function ahead(date) {
  if (!date) return NONE;
  const left = (date.getTime() - Date.now()) / 1000;
  if (left < 0) return ago(date);
  if (left < 7200) return `in ${Math.max(1, Math.round(left / 60))} min`;
  return left < 172800 ? `in ${Math.round(left / 3600)} h` : `in ${Math.round(left / 86400)} days`;
}

export const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

/** "validation_accuracy" → "validation accuracy"; its first letter large. */
export const spoken = (key) => key.replaceAll("_", " ");
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** How values of a unit are written on axes and in tables. */
export function writer(unit) {
  if (unit === "bytes") return bytes;
  if (unit === "s") return seconds;
  return number;
}

/** [3, 4, 5, 9] → "3–5, 9". */
export function ranges(numbers) {
  const parts = [];
  for (const one of numbers) {
    const last = parts.at(-1);
    if (last && one === last[1] + 1) last[1] = one;
    else parts.push([one, one]);
  }
  return parts.map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(", ");
}

/** `epsilon` as the run states it. */
export const epsilon = (row) => (row.epsilon === null || row.epsilon === undefined ? NONE : `${row.epsilon_at_most ? "≤ " : ""}${number(row.epsilon)}`);
