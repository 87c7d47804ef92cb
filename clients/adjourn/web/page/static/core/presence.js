/**
 * Which of a browser's tabs follow what happens: those that are seen, and one of those that are not, for notifications.
 *
 * A browser opens six connections to a server, for all its tabs together. A tab that nobody sees gives its own back.
 */
const LOCK = "adjourn.watcher";
let watcher = false;
const changed = new Set();

function tell() {
  for (const listener of [...changed]) listener();
}

document.addEventListener("visibilitychange", tell);
navigator.locks?.request(LOCK, () => {
  watcher = true;
  tell();
  return new Promise(() => {}); // until the tab is closed
});

/** Returns whether this tab is the one that watches for all of them; always, where a browser cannot tell. */
export function isWatcher() {
  return watcher || !navigator.locks;
}

/** Returns whether somebody may see this tab. */
export function isSeen() {
  return !document.hidden;
}

/** Runs `work(signal)` while `when()` is so, and begins it anew when it is again; returns how to end it. */
export function whileWanted(work, when = isSeen) {
  let running = null;
  const look = () => {
    if (when() && !running) {
      running = new AbortController();
      work(running.signal);
    } else if (!when() && running) {
      running.abort();
      running = null;
    }
  };
  changed.add(look);
  look();
  return () => {
    changed.delete(look);
    running?.abort();
    running = null;
  };
}
