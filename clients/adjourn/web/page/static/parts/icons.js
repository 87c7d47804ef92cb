/** Drawings of the page; all are decoration beside text or a label. */
import { html } from "../core/html.js";

const PATHS = {
  pause: "M6 4h3v12H6zM11 4h3v12h-3z",
  play: "M6 4l10 6-10 6z",
  stop: "M5 5h10v10H5z",
  trash: "M4 6h12M8 6V4h4v2M6 6l.7 10h6.6L14 6M9 9v4M11 9v4",
  plus: "M10 4v12M4 10h12",
  search: "M9 4a5 5 0 1 1 0 10A5 5 0 0 1 9 4zM13 13l4 4",
  pin: "M7 3h6l-1 5 3 3H5l3-3zM10 11v6",
  open: "M5 9h10v8H5zM7 9V6a3 3 0 0 1 5.8-1",
  more: "M4 10h.01M10 10h.01M16 10h.01",
  gear: "M10 7a3 3 0 1 1 0 6 3 3 0 0 1 0-6zM10 2v3M10 15v3M2 10h3M15 10h3M4.3 4.3l2.1 2.1M13.6 13.6l2.1 2.1M4.3 15.7l2.1-2.1M13.6 6.4l2.1-2.1",
  check: "M4 10.5l4 4 8-9",
  warning: "M10 3l8 14H2zM10 8v4M10 14.5v.01",
  copy: "M7 7h9v9H7zM4 13V4h9",
  back: "M12 4l-6 6 6 6",
};
const FILLED = new Set(["pause", "play", "stop"]);

export function Icon({ name }) {
  const style = FILLED.has(name) ? "icon icon-filled" : "icon";
  return html`<svg
    class=${style}
    viewBox="0 0 20 20"
    aria-hidden="true"
    focusable="false"
  ><path d=${PATHS[name]} /></svg>`;
}

/** The mark: a sealed envelope. */
export function Mark() {
  return html`<svg class="mark" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
    <rect x="2" y="6" width="28" height="20" rx="4" class="mark-paper" />
    <path d="M3.5 8.5L16 18l12.5-9.5" class="mark-fold" />
    <circle cx="16" cy="18" r="4.2" class="mark-seal" />
  </svg>`;
}
