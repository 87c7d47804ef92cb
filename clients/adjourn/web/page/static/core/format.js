/** PURE. Protobuf JSON as numbers, and numbers as people read them. What is unset is null, and shown as NOT_TOLD. */

export const NOT_TOLD = "not told";

const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** Returns a duration of the wire ("1.5s") in seconds; null if it is unset. */
export function seconds(duration) {
  return duration ? Number.parseFloat(duration) : null;
}

/** Returns a timestamp of the wire in milliseconds since 1970; null if it is unset. */
export function millis(timestamp) {
  return timestamp ? Date.parse(timestamp) : null;
}

/** Returns a number of the wire, where int64 and values that are not finite are strings; null if it is unset. */
export function number(value) {
  return value === undefined || value === null ? null : Number(value);
}

/** Returns seconds from one timestamp to another; null if one of them is unset. */
export function between(start, end) {
  return start && end ? (millis(end) - millis(start)) / 1000 : null;
}

/** Returns `850 ms`, `4.2 s`, `3 min 12 s`, `2 h 05 min` or `3 d 4 h`; clocks that disagree give `0 ms`. */
export function duration(span) {
  if (span === null || span === undefined || Number.isNaN(span)) return NOT_TOLD;
  const length = Math.max(span, 0);
  if (length < 0.9995) return `${Math.round(length * 1000)} ms`;
  if (length < 9.95) return `${length.toFixed(1)} s`;
  const whole = Math.round(length);
  if (whole < MINUTE) return `${whole} s`;
  if (whole < HOUR) return `${Math.floor(whole / MINUTE)} min ${two(whole % MINUTE)} s`;
  if (whole < DAY) return `${Math.floor(whole / HOUR)} h ${two(Math.floor((whole % HOUR) / MINUTE))} min`;
  return `${Math.floor(whole / DAY)} d ${Math.floor((whole % DAY) / HOUR)} h`;
}

/** Returns a duration as a clock shows it, without fractions: for what is counted each second. */
export function counted(span) {
  return span === null
    ? NOT_TOLD
    : duration(span < 9.95 ? Math.floor(Math.max(span, 0)) : span)
        .replace(".0 s", " s")
        .replace("0 ms", "0 s");
}

/** Returns `512 B`, `4.2 KiB`, `1.3 GiB`... */
export function bytes(count) {
  if (count === null || count === undefined || Number.isNaN(count)) return NOT_TOLD;
  let amount = count;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (Math.abs(amount) < 1023.95) return unit === "B" ? `${Math.round(amount)} B` : `${amount.toFixed(1)} ${unit}`;
    amount /= 1024;
  }
  return `${amount.toFixed(1)} PiB`;
}

/** Returns a metric's value, to five digits. */
export function figure(value) {
  if (value === null || value === undefined) return NOT_TOLD;
  if (!Number.isFinite(value)) return String(value);
  if (value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e6)) return value.toExponential(3);
  return String(Number(value.toPrecision(5)));
}

/** Returns a whole number with thin spaces between thousands. */
export function count(value) {
  return value === null || value === undefined ? NOT_TOLD : String(value).replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
}

export function percent(share) {
  return share === null || share === undefined ? NOT_TOLD : `${Math.round(share)} %`;
}

/** Returns `1 job` or `12 jobs`. */
export function plural(amount, what) {
  return `${count(amount)} ${what}${amount === 1 ? "" : "s"}`;
}

/** Returns the level of a share in percent: high over 90, raised over 70, else normal; none if it is not told. */
export function level(share) {
  if (share === null || share === undefined) return "none";
  return share > 90 ? "high" : share > 70 ? "raised" : "normal";
}

/** Returns local date and time, the year left out if it is this one. */
export function moment(timestamp, now = Date.now()) {
  if (!timestamp) return NOT_TOLD;
  const time = new Date(timestamp);
  const year = time.getFullYear() === new Date(now).getFullYear() ? undefined : "numeric";
  return time.toLocaleString("en-GB", {
    day: "numeric",
    month: "short",
    year,
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
  });
}

/** Returns the local time of day. */
export function clock(timestamp) {
  return timestamp ? new Date(timestamp).toLocaleTimeString("en-GB") : NOT_TOLD;
}

/** Returns `just now`, `42 s ago`, `3 min ago`, `2 h ago` or `5 d ago`. */
export function ago(timestamp, now) {
  if (!timestamp) return NOT_TOLD;
  const span = Math.max((now - millis(timestamp)) / 1000, 0);
  if (span < 2) return "just now";
  if (span < MINUTE) return `${Math.floor(span)} s ago`;
  if (span < HOUR) return `${Math.floor(span / MINUTE)} min ago`;
  if (span < DAY) return `${Math.floor(span / HOUR)} h ago`;
  return `${Math.floor(span / DAY)} d ago`;
}

/** Returns the last segment of a resource name. */
export function short(name) {
  return name ? name.slice(name.lastIndexOf("/") + 1) : "";
}

/** Returns `a=1, b=2`, sorted; values as JSON has them where they are no text. */
export function pairs(values) {
  return Object.keys(values ?? {})
    .sort()
    .map((key) => `${key}=${typeof values[key] === "string" ? values[key] : JSON.stringify(values[key])}`)
    .join(", ");
}

/** Returns an enum's name for people: `CHECKPOINT_REGISTERED` as `Checkpoint registered`. */
export function words(name) {
  const text = String(name).replaceAll("_", " ").toLowerCase();
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function two(amount) {
  return String(amount).padStart(2, "0");
}
