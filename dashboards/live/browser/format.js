const THIN = "\u202f";

/**
 * @param {number} ms
 * @returns {string} a duration as people say it: `40 ms`, `0.4 s`, `12 s`, `2 min 14 s`, `3 h 5 min`
 */
export function duration(ms) {
  if (ms < 99.5) return `${Math.max(Math.round(ms), 0)} ms`;
  const seconds = ms / 1000;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const [whole, units] = seconds < 3599.5 ? [Math.round(seconds), ["min", "s"]] : [Math.round(seconds / 60), ["h", "min"]];
  if (whole >= 1440 && units[0] === "h") return `${Math.floor(whole / 1440)} d ${Math.floor((whole % 1440) / 60)} h`;
  const rest = whole % 60;
  return `${Math.floor(whole / 60)} ${units[0]}${rest === 0 ? "" : ` ${rest} ${units[1]}`}`;
}

/**
 * @param {number} value
 * @returns {string} `412 MiB`, `9.8 GiB`
 */
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let scaled = value;
  let unit = 0;
  while (scaled >= 1000 && unit < units.length - 1) {
    scaled /= 1024;
    unit++;
  }
  return `${scaled >= 100 || unit === 0 ? Math.round(scaled) : scaled.toFixed(1)} ${units[unit]}`;
}

/**
 * @param {number} value
 * @returns {string} `12`, `1 240`, `8.3`
 */
export function count(value) {
  const text = Number.isInteger(value) || Math.abs(value) >= 100 ? String(Math.round(value)) : value.toFixed(1);
  return text.replace(/\B(?=(\d{3})+(?!\d))/g, THIN);
}

/**
 * @param {number} share 0 to 1
 * @returns {string}
 */
export function percent(share) {
  const hundredths = share * 100;
  return `${hundredths > 0 && hundredths < 9.95 ? hundredths.toFixed(1) : Math.round(hundredths)} %`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

/**
 * @param {number} epochMs
 * @returns {string} `14:03:22`
 */
export function clock(epochMs) {
  return CLOCK.format(epochMs);
}

/**
 * @param {number} number
 * @param {string} one
 * @param {string} [many]
 * @returns {string} `1 job`, `3 jobs`
 */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
