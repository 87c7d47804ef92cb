/** Notifications of the browser: pauses, ends, failures and what looks wrong, each once, if the person has allowed them. */
import { follow } from "./api.js";
import { short, words } from "./format.js";
import { choose, chosen, preferences } from "./preferences.js";
import { isWatcher, whileWanted } from "./presence.js";
import { jobPath } from "./router.js";

const TYPES = [
  "PAUSED",
  "SUCCEEDED",
  "FAILED",
  "CANCELLED",
  "LOSS_NOT_FINITE",
  "LOSS_JUMPED",
  "GRADIENTS_EXPLODED",
  "GPU_MEMORY_NEARLY_FULL",
];

/** Why notifications cannot be had; empty: they can. */
export function unavailable() {
  if (!("Notification" in window)) return "This browser has none";
  if (!window.isSecureContext) return "Browsers allow them on https and localhost only";
  return Notification.permission === "denied" ? "They are blocked in the browser's settings for this site" : "";
}

/** Asks the browser; returns whether it allows them. */
export async function allow() {
  const answer = await Notification.requestPermission();
  choose({ notify: answer === "granted" });
  return answer === "granted";
}

function show({ job, jobUid, event }) {
  const text = event.message || words(event.type);
  const shown = new Notification(`${short(job)}: ${words(event.type)}`, {
    body: text,
    tag: `${jobUid}/${event.sequence}`,
  });
  shown.addEventListener("click", () => {
    window.focus();
    location.hash = jobPath(job);
    shown.close();
  });
}

/** Follows events while notifications are wanted; only one tab does. */
export function watchEvents() {
  let end = null;
  const look = () => {
    const wanted = preferences.notify && !unavailable() && Notification.permission === "granted";
    if (wanted && !end) {
      end = whileWanted(
        (signal) =>
          follow("v1/jobs:watchEvents", {
            query: { types: TYPES },
            signal,
            onMessage(message) {
              if (message.event) show(message);
            },
          }),
        isWatcher,
      );
    } else if (!wanted && end) {
      end();
      end = null;
    }
  };
  chosen.listen(look);
  look();
}
