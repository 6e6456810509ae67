// Numbers, sizes and times as texts.

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const dateTime = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const hour = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const date = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });

export function number(value) {
  return grouped.format(value);
}

// Three digits and a unit: `1.25 GiB`.
export function bytes(value) {
  if (value === null || value === undefined) return "unknown";
  const sign = value < 0 ? "−" : "";
  let amount = Math.abs(value);
  let unit = 0;
  while (amount >= 1024 && unit < UNITS.length - 1) {
    amount /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || amount >= 100 ? 0 : amount >= 10 ? 1 : 2;
  const text = amount.toFixed(digits);
  const unitName = unit === 0 && Math.abs(value) === 1 ? "byte" : UNITS[unit];
  return `${sign}${digits ? text.replace(/\.?0+$/, "") : text} ${unitName}`;
}

// The size with all its bytes.
export function exactBytes(value) {
  return value < 1024 ? bytes(value) : `${bytes(value)} (${number(value)} bytes)`;
}

export function percent(part, whole) {
  if (!whole) return "0%";
  const value = (100 * part) / whole;
  if (value > 0 && value < 0.1) return "<0.1%";
  if (value < 100 && value > 99.9) return ">99.9%";
  return `${value.toFixed(value < 10 ? 1 : 0).replace(/\.0$/, "")}%`;
}

export function count(amount, singular, plural = `${singular}s`) {
  return `${number(amount)} ${amount === 1 ? singular : plural}`;
}

export function time(text) {
  return dateTime.format(new Date(text));
}

// Day and minute, for axes.
export function minute(text) {
  return hour.format(new Date(text));
}

export function day(text) {
  return date.format(new Date(text));
}

export function duration(seconds, fromMinutes = 2) {
  const whole = Math.max(0, Math.round(seconds));
  // From two of a unit on, so that the error of rounding is small: 90 minutes, then 2 hours.
  const [unit, size] = [
    ["day", 86400, 2],
    ["hour", 3600, 2],
    ["minute", 60, fromMinutes],
  ].find(([, size, from]) => whole >= from * size) ?? ["second", 1];
  return count(Math.round(whole / size), unit);
}

// How long ago, or how long until. Roughly: from one minute on without seconds.
export function relative(text, now = Date.now()) {
  const seconds = (new Date(text).getTime() - now) / 1000;
  if (Math.abs(seconds) < 5) return "now";
  const distance = duration(Math.abs(seconds), 1);
  return seconds < 0 ? `${distance} ago` : `in ${distance}`;
}

// The first part of an id, for people.
export function shortId(id) {
  return id.slice(0, 8);
}
