/** What a view asks for beside the watch: asked again when it may have changed, never two at a time. */
import { all, call, path } from "./api.js";
import { useEffect, useRef, useState } from "./html.js";

/**
 * Returns `{value, error}` of `ask(signal, before)`, asked anew whenever `key` changes; `every` milliseconds at most.
 *
 * What was answered before stays while the next answer is on its way, and is handed to `ask`.
 */
export function useAnswer(ask, key, every = 0) {
  const [state, setState] = useState({ value: null, error: null });
  const kept = useRef({ last: -Infinity, value: null, life: null });
  useEffect(() => {
    const life = new AbortController();
    kept.current = { last: -Infinity, value: null, life, running: false, due: false };
    return () => life.abort();
  }, []);
  useEffect(() => {
    const own = kept.current;
    const run = async () => {
      if (own.running) {
        own.due = true;
        return;
      }
      own.running = true;
      const wait = own.last + every - performance.now();
      if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
      if (own.life.signal.aborted) return;
      own.last = performance.now();
      own.due = false;
      try {
        own.value = await latest.current(own.life.signal, own.value);
        setState({ value: own.value, error: null });
      } catch (error) {
        if (own.life.signal.aborted) return;
        setState({ value: own.value, error });
      }
      own.running = false;
      if (own.due) run();
    };
    run();
  }, [key]);
  const latest = useRef(ask);
  latest.current = ask;
  return state;
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
