/**
 * Why something could not be done, for people.
 * @typedef {{ status: number, code: string, title: string, detail: string, retryAfterSeconds: number | null }} Failure
 */

/** What to say first; the API's own words follow. */
const TITLES = /** @type {Record<string, string>} */ ({
  "queue-full": "The queue is full",
  "deadline-unmeetable": "It could not start in time",
  "rate-limited": "Too many requests for this key",
  "too-many-jobs": "This key has as many unfinished jobs as it may",
  unauthorized: "Your API key is not accepted any more. Reload the page to enter another",
  forbidden: "Your API key may not do this",
  "redis-unavailable": "The queues can't be reached at the moment",
  "problem-too-long": "The problem is too long for the model",
});

/**
 * @param {Response} response
 * @returns {Promise<Failure>}
 */
export async function problemOf(response) {
  const document = await response.json().catch(() => ({}));
  const seconds = Number(response.headers.get("retry-after") ?? document.retryAfterSeconds);
  const code = typeof document.code === "string" ? document.code : "unknown";
  return {
    status: response.status,
    code,
    title: TITLES[code] ?? document.title ?? `The API answered ${response.status}`,
    detail: typeof document.detail === "string" ? document.detail : "",
    retryAfterSeconds: seconds > 0 ? seconds : null,
  };
}

/** @type {Failure} */
export const UNREACHABLE = {
  status: 0,
  code: "unreachable",
  title: "The API can't be reached",
  detail: "Nothing was confirmed. Send it again: the same problem sent twice is solved once.",
  retryAfterSeconds: null,
};
