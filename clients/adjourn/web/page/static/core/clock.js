/** The time, once a second, for what is counted on the page. */
import { Signal, useSignal } from "./signal.js";

const time = new Signal(Date.now());
setInterval(() => time.set(Date.now()), 1000);

/** Returns milliseconds since 1970; the component is drawn anew each second. */
export function useNow() {
  return useSignal(time);
}
