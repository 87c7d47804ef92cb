/** A value that tells components when it changes, once a frame at most. */
import { useEffect, useState } from "./html.js";

export class Signal {
  constructor(value) {
    this.value = value;
    this._listeners = new Set();
    this._due = false;
  }

  set(value) {
    this.value = value;
    this.tell();
  }

  /** Tells that the value has changed within. A page in the background draws nothing, and is told all the same. */
  tell() {
    if (this._due) return;
    this._due = true;
    const now = () => {
      this._due = false;
      for (const listener of [...this._listeners]) listener(this.value);
    };
    if (document.hidden) setTimeout(now, 100);
    else requestAnimationFrame(now);
  }

  listen(listener) {
    this._listeners.add(listener);
    return () => this._listeners.delete(listener);
  }
}

/** Has a component drawn anew when a signal changes; returns its value. */
export function useSignal(signal) {
  const [, draw] = useState(0);
  useEffect(() => {
    draw((count) => count + 1); // it may have changed since this was drawn
    return signal.listen(() => draw((count) => count + 1));
  }, [signal]);
  return signal.value;
}
