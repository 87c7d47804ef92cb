/** What a view asks for beside the watch: asked again when it may have changed, never two at a time. */
import { all, call, path } from "./api.js";
import { useEffect, useRef, useState } from "./html.js";

const AGAIN_MILLIS = 3000;

/**
 * Returns `{value, error}` of `ask(signal, before)`, asked anew whenever `key` changes; every so many milliseconds at most.
 *
 * What was answered before stays while the next answer is on its way, and is handed to `ask`. After an error it is asked
 * again by itself.
 */
export function useAnswer(ask, key, every = 0) {
  const [state, setState] = useState({ value: null, error: null });
  const asking = useRef(null);
  useEffect(() => {
    const life = new AbortController();
    asking.current = { next: 0, value: null, life, running: false, due: false };
    return () => life.abort();
  }, []);
  const newest = useRef(ask);
  newest.current = ask;
  useEffect(() => {
    const own = asking.current;
    own.due = true;
    if (!own.running) run(own, newest, every, setState);
  }, [key]);
  return state;
}

async function run(own, newest, every, setState) {
  own.running = true;
  while (own.due) {
    const wait = own.next - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    if (own.life.signal.aborted) return;
    own.due = false;
    try {
      own.value = await newest.current(own.life.signal, own.value);
      own.next = performance.now() + every;
      setState({ value: own.value, error: null });
    } catch (error) {
      if (own.life.signal.aborted) return;
      own.next = performance.now() + AGAIN_MILLIS;
      own.due = true;
      setState({ value: own.value, error });
    }
  }
  own.running = false;
}

/** Asks for what every epoch came to; only the last page again, unless another attempt may have changed the ones before. */
export function epochsOf(name, attempt) {
  return async (signal, before) => {
    const known = before?.attempt === attempt ? before : { epochs: [], token: "" };
    let { epochs, token } = known;
    epochs = token ? epochs.slice(0, known.whole) : [];
    let whole = epochs.length;
    for (;;) {
      const page = await call("GET", path(name, "/epochs"), { query: { pageSize: 500, pageToken: token }, signal });
      epochs = [...epochs, ...(page.epochs ?? [])];
      if (!page.nextPageToken) return { attempt, epochs, token, whole };
      token = page.nextPageToken;
      whole = epochs.length;
    }
  };
}

export function checkpointsOf(name) {
  return (signal) => all(path(name, "/checkpoints"), "checkpoints", { signal });
}

export async function stepsOf(name, signal) {
  return (await call("GET", path(name, "/steps"), { query: { maxSteps: 1000 }, signal })).steps ?? [];
}

export async function samplesOf(name, signal) {
  return (await call("GET", path(name, "/samples"), { query: { maxSamples: 1000 }, signal })).samples ?? [];
}
