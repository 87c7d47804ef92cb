/** Calls of the contract over REST, and streams that are followed for as long as they are wanted. */
import { Parser } from "./sse.js";
import { preferences } from "./preferences.js";

const SILENCE_MILLIS = 40_000; // the gateway says something every 15 s
const FIRST_DELAY = 500;
const LAST_DELAY = 5_000;
const CALL_MILLIS = 30_000;
const MAY_MEND = new Set([408, 429, 500, 502, 503, 504]);

/** A call was refused, or not answered. */
export class CallError extends Error {
  constructor(message, { status = 0, reason = "", violations = {} } = {}) {
    super(message);
    this.status = status;
    this.reason = reason;
    /** Why each field was refused, by its path in the request. */
    this.violations = violations;
  }
}

/** Returns the error that an answer tells of, a google.rpc.Status if the gateway wrote it. */
async function refused(response) {
  let told = {};
  try {
    told = await response.json();
  } catch {
    // a proxy in between may answer with anything
  }
  return ofStatus(told, response.status);
}

function ofStatus(status, http = 0) {
  const details = status.details ?? [];
  const info = details.find((detail) => detail.reason && detail.domain) ?? {};
  const bad = details.find((detail) => detail.fieldViolations) ?? {};
  const violations = Object.fromEntries((bad.fieldViolations ?? []).map((each) => [each.field, each.description]));
  return new CallError(status.message || `the gateway answered ${http}`, {
    status: http,
    reason: info.reason,
    violations,
  });
}

function headers(more = {}) {
  const actor = preferences.actor.replace(/[^\x20-\x7e]/g, "?").trim();
  return actor ? { ...more, "adjourn-actor": actor } : more;
}

function addressOf(place, query) {
  const url = new URL(place, document.baseURI);
  for (const [key, value] of Object.entries(query)) {
    for (const each of [value].flat()) if (each !== undefined && each !== "") url.searchParams.append(key, each);
  }
  return url;
}

/** Calls a method and returns its answer; throws CallError. */
export async function call(method, path, { query = {}, body, type = "application/json", signal } = {}) {
  const url = addressOf(path, query);
  const json = body !== undefined && type === "application/json";
  const patience = AbortSignal.timeout(CALL_MILLIS);
  let response;
  try {
    response = await fetch(url, {
      method,
      signal: signal ? AbortSignal.any([signal, patience]) : patience,
      headers: headers(body === undefined ? {} : { "content-type": type }),
      body: json ? JSON.stringify(body) : body,
    });
    if (response.ok) return await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new CallError(
      patience.aborted
        ? "the gateway did not answer in time; what was asked for may happen still"
        : "the gateway cannot be reached",
    );
  }
  throw await refused(response);
}

/** Returns all items of a list, page by page. */
export async function all(path, field, { query = {}, signal, most = 20_000 } = {}) {
  const found = [];
  let token = "";
  do {
    const page = await call("GET", path, { query: { ...query, pageSize: 500, pageToken: token }, signal });
    found.push(...(page[field] ?? []));
    token = page.nextPageToken ?? "";
  } while (token && found.length < most);
  return found;
}

/** Returns a path segment of a resource name: `jobs/a` stays as it is, anything else in it is escaped. */
export function path(name, rest = "") {
  return `v1/${name.split("/").map(encodeURIComponent).join("/")}${rest}`;
}

/**
 * Follows a stream until `signal` aborts: comes back after every break, after the last event that was taken.
 *
 * `onMessage(message)` gets each response. `onState({live, error})` says whether the stream is up, and if not, why.
 * `onOpen()` is called before the first message of each connection. A refusal that waiting does not mend ends it.
 */
export async function follow(place, { query = {}, signal, onMessage, onState = () => {}, onOpen = () => {} }) {
  const parser = new Parser();
  const url = addressOf(place, query);
  let delay = FIRST_DELAY;
  while (!signal.aborted) {
    const { came, over, failure } = await connection(url, { parser, signal, onMessage, onState, onOpen });
    if (signal.aborted) return;
    parser.reset();
    if (came) delay = FIRST_DELAY;
    if (came && !failure) continue; // a server that goes away ends its streams: another may be there
    onState({ live: false, error: over ? null : (failure ?? broken()) });
    if (over || (failure?.status >= 400 && !MAY_MEND.has(failure.status))) return;
    await pause(delay, signal);
    delay = Math.min(delay * 2, LAST_DELAY);
  }
}

/** Takes one connection in; returns whether any event came, whether nothing follows, and what broke it. */
async function connection(url, { parser, signal, onMessage, onState, onOpen }) {
  const own = new AbortController();
  const stop = () => own.abort();
  signal.addEventListener("abort", stop);
  let silence;
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(stop, SILENCE_MILLIS);
  };
  let came = false;
  try {
    heard();
    const last = parser.lastId ? { "last-event-id": parser.lastId } : {};
    const options = {
      signal: own.signal,
      cache: "no-store",
      headers: headers({ accept: "text/event-stream", ...last }),
    };
    const response = await fetch(url, options).catch(() => null);
    if (!response) return { came, failure: broken() };
    if (!response.ok) return { came, failure: await refused(response) };
    if (response.status === 204) return { came, over: true };
    onOpen();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const piece = await reader.read().catch(() => null);
      if (!piece) return { came, failure: broken() };
      if (piece.done) return { came };
      heard();
      for (const { event, data } of parser.feed(piece.value)) {
        if (event === "error") return { came, failure: ofStatus(JSON.parse(data), 503) };
        came = true;
        onState({ live: true, error: null });
        onMessage(JSON.parse(data));
      }
    }
  } finally {
    clearTimeout(silence);
    signal.removeEventListener("abort", stop);
    own.abort();
  }
}

function broken() {
  return new CallError("the connection to the gateway is broken");
}

/** Waits; less if the network or the person comes back. */
function pause(time, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(end, time);
    function end() {
      clearTimeout(timer);
      window.removeEventListener("online", end);
      document.removeEventListener("visibilitychange", end);
      signal.removeEventListener("abort", end);
      resolve();
    }
    window.addEventListener("online", end);
    document.addEventListener("visibilitychange", end);
    signal.addEventListener("abort", end);
  });
}
