/** What a person has chosen on this machine: theme, name, notifications. Kept in the browser, sent nowhere but the name. */
import { Signal } from "./signal.js";

const KEY = "adjourn.preferences";
const DEFAULTS = { theme: "system", actor: "", notify: false };

function stored() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY) ?? "{}") };
  } catch {
    return { ...DEFAULTS }; // no storage, or what is there is not ours
  }
}

export const preferences = stored();
export const chosen = new Signal(preferences);

export function choose(changes) {
  Object.assign(preferences, changes);
  try {
    localStorage.setItem(KEY, JSON.stringify(preferences));
  } catch {
    // it holds until the page is closed
  }
  applyTheme();
  chosen.tell();
}

/** Says by which colours the page is drawn; `system` follows the machine. */
export function applyTheme() {
  if (preferences.theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = preferences.theme;
}
