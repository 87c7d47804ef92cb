/**
 * All jobs, as the control plane tells them: one watch for the whole page.
 *
 * What is shown is what was told. Answers to calls do not change it; the watch does.
 */
import { follow } from "./api.js";
import { Listing } from "./listing.js";
import { Signal } from "./signal.js";
import { isSeen, isWatcher, whileWanted } from "./presence.js";

/** Jobs by name, and whether they are the present ones. */
export const jobs = new Signal({
  byName: new Map(),
  /** The first list is complete. */
  listed: false,
  live: false,
  /** Why it is not live. */
  error: null,
  /** Since when it is not, in milliseconds. */
  lostTime: Date.now(),
});

/** Follows the jobs for as long as the page is open. */
export function watchJobs() {
  const listing = new Listing(jobs.value);
  const heard = (live, error) => {
    const state = jobs.value;
    if (live === state.live && error === state.error) return;
    if (state.live && !live) state.lostTime = Date.now();
    state.live = live;
    state.error = error;
    jobs.tell();
  };
  const work = (signal) => {
    signal.addEventListener("abort", () => heard(false, null)); // nobody sees it, and what is known grows old
    follow("v1/jobs:watch", {
      signal,
      onOpen: () => listing.begin(),
      onMessage(message) {
        listing.take(message);
        jobs.tell();
        if (message.resumeToken) heard(true, null); // the list is complete
      },
      onState({ live, error }) {
        if (!live) heard(false, error);
      },
    });
  };
  whileWanted(work, () => isSeen() || isWatcher());
}
