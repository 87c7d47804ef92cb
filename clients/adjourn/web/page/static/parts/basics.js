/** Small parts that every view uses: badges, bars, facts, notices, buttons. */
import { NOT_TOLD, level, percent } from "../core/format.js";
import { html, useId } from "../core/html.js";
import { Icon } from "./icons.js";

/** The state of a job or worker. */
export function Badge({ state }) {
  return html`<span class=${`badge badge-${String(state ?? "unknown").toLowerCase()}`}>${state ?? "UNKNOWN"}</span>`;
}

/** How far something has come: a share from 0 to 1, null while it is not told. */
export function ProgressBar({ share, label, state = "" }) {
  const now =
    share === null ? {} : { "aria-valuenow": Math.round(share * 100), "aria-valuemin": 0, "aria-valuemax": 100 };
  return html`<div class=${`progress progress-${state.toLowerCase()}`} role="progressbar" aria-label=${label} ...${now}>
    <div class="progress-fill" style=${{ width: `${(share ?? 0) * 100}%` }}></div>
  </div>`;
}

/** What is used of something, in percent: red over 90, yellow over 70, in words as well. */
export function UsageBar({ label, share, detail = "" }) {
  const found = level(share);
  const said = { high: "high", raised: "raised", normal: "", none: "" }[found];
  return html`<div class="usage">
    <div class="usage-head">
      <span class="usage-label">${label}</span>
      <span class="usage-value">
        ${said && html`<span class=${`usage-word usage-word-${found}`}>${said}</span>`}
        ${detail && html`<span class="muted">${detail}</span>`}
        <strong>${share === null ? NOT_TOLD : percent(share)}</strong>
      </span>
    </div>
    <div
      class=${`meter meter-${found}`}
      role="meter"
      aria-label=${label}
      aria-valuemin="0"
      aria-valuemax="100"
      aria-valuenow=${share === null ? 0 : Math.round(Math.min(share, 100))}
      aria-valuetext=${share === null ? NOT_TOLD : `${percent(share)}${said ? `, ${said}` : ""}`}
    >
      <div class="meter-fill" style=${{ width: `${Math.min(share ?? 0, 100)}%` }}></div>
    </div>
  </div>`;
}

/** A labelled figure. */
export function Stat({ label, value, detail = "", title }) {
  const unknown = value === NOT_TOLD;
  return html`<div class="stat" title=${title}>
    <dt>${label}</dt>
    <dd class=${unknown ? "unknown" : ""}>${value}${detail && html`<small>${detail}</small>`}</dd>
  </div>`;
}

/** Rows of a label and a value; those without a value are left out, null is shown as not told. */
export function Facts({ rows }) {
  return html`<dl class="facts">
    ${rows
      .filter(([, value]) => value !== undefined && value !== "")
      .map(
        ([label, value]) =>
          html`<div key=${label}><dt>${label}</dt><dd class=${value === null ? "unknown" : ""}>${value ?? NOT_TOLD}</dd></div>`,
      )}
  </dl>`;
}

export function Section({ title, children, actions, id }) {
  const own = useId();
  return html`<section class="card" aria-labelledby=${id ?? own}>
    <header class="card-head"><h2 id=${id ?? own}>${title}</h2>${actions}</header>
    ${children}
  </section>`;
}

/** Something that people should know: `kind` is good, note, warn or bad. */
export function Notice({ kind = "note", title, children, role }) {
  return html`<div class=${`notice notice-${kind}`} role=${role}>
    <${Icon} name=${kind === "good" ? "check" : "warning"} />
    <div><strong>${title}</strong>${children && html`<p>${children}</p>`}</div>
  </div>`;
}

/** What became of a call that was refused. */
export function Refused({ failure }) {
  const title = `It was refused${failure.reason ? `: ${failure.reason}` : ""}`;
  return html`<${Notice} kind="bad" role="alert" title=${title}>${failure.message}</${Notice}>`;
}

/** Nothing is here, and why. */
export function Empty({ title, children }) {
  return html`<div class="empty"><p class="empty-title">${title}</p>${children && html`<p>${children}</p>`}</div>`;
}

/**
 * A button that would be refused says why, and does nothing. It stays focusable, so that the reason can be heard.
 */
export function Action({ label, icon, why = "", onClick, kind = "", compact = false, name = "" }) {
  const id = useId();
  return html`<span class="action">
    <button
      type="button"
      class=${`button ${kind && `button-${kind}`} ${compact ? "button-icon" : ""}`}
      aria-disabled=${why ? "true" : undefined}
      aria-describedby=${why ? id : undefined}
      aria-label=${compact ? `${label} ${name}`.trim() : undefined}
      title=${why ? `${label}: ${why}` : compact ? label : undefined}
      onClick=${(event) => (why ? event.preventDefault() : onClick(event))}
    >
      ${icon && html`<${Icon} name=${icon} />`}${compact ? "" : label}
    </button>
    ${why && html`<span id=${id} class="hidden">${why}</span>`}
  </span>`;
}
