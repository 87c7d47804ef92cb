/** The page: its frame, and which view it shows. */
import { clock, count, counted } from "./core/format.js";
import { useNow } from "./core/clock.js";
import { html, render, useEffect, useErrorBoundary, useRef } from "./core/html.js";
import { jobs, watchJobs } from "./core/jobs.js";
import { allow, unavailable, watchEvents } from "./core/notifications.js";
import { applyTheme, choose, chosen, preferences } from "./core/preferences.js";
import { route } from "./core/router.js";
import { useSignal } from "./core/signal.js";
import { useClosing } from "./parts/dialog.js";
import { Icon, Mark } from "./parts/icons.js";
import { Job } from "./views/job.js";
import { Jobs } from "./views/jobs.js";
import { NewJob } from "./views/new_job.js";
import { Paused, pausedOf } from "./views/paused.js";
import { Workers } from "./views/workers.js";

function App() {
  const state = useSignal(jobs);
  const { path } = useSignal(route);
  const main = useRef(null);
  const [view = "jobs", ...rest] = path;
  const place = path.join("/");
  const first = useRef(true);
  useClosing(place);
  useEffect(() => {
    document.title = `${titleOf(view, rest)} · Adjourn`;
    if (!first.current) main.current.focus({ preventScroll: true });
    first.current = false;
    window.scrollTo(0, 0);
  }, [place]);
  const paused = pausedOf(state).length;
  const link = (key, label, amount) =>
    html`<a
      href=${`#/${key}`}
      aria-current=${view === key ? "page" : undefined}
    >${label}${amount ? html`<span class="amount">${count(amount)}</span>` : ""}</a>`;
  return html`
    <header class="bar">
      <button type="button" class="skip" onClick=${() => main.current.focus()}>To the content</button>
      <a class="brand" href="#/jobs"><${Mark} /><span>Adjourn</span></a>
      <nav aria-label="Main">${link("jobs", "Jobs")}${link("paused", "Paused", paused)}${link("workers", "Workers")}</nav>
      <${Liveness} state=${state} />
      <${Settings} />
    </header>
    <${Stale} state=${state} />
    <main id="main" ref=${main} tabindex="-1"><${Shown}
      key=${view === "jobs" && rest.length ? rest[0] : view}
      view=${view}
      rest=${rest}
    /></main>`;
}

function titleOf(view, rest) {
  if (view === "jobs" && rest.length) return rest[0];
  return { jobs: "Jobs", paused: "Paused runs", workers: "Workers", new: "New job" }[view] ?? "Nothing here";
}

function Shown({ view, rest }) {
  const [error, again] = useErrorBoundary((found) => console.error(found));
  if (error) {
    return html`<div class="view"><div class="notice notice-bad" role="alert"><div><strong>This page has a fault.</strong>
      <p>${String(error)}</p><button type="button" class="button" onClick=${again}>Try again</button></div></div></div>`;
  }
  if (view === "jobs" && rest.length) return html`<${Job} key=${rest[0]} name=${`jobs/${rest[0]}`} tab=${rest[1]} />`;
  const View = { jobs: Jobs, paused: Paused, workers: Workers, new: NewJob }[view];
  if (View) return html`<${View} />`;
  return html`<div class="view"><h1>Nothing is here</h1><p><a href="#/jobs">All jobs</a></p></div>`;
}

function sentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}

/** Whether what is shown is the present. */
function Liveness({ state }) {
  const word = state.live ? "Live" : state.listed ? "Not live" : "Connecting";
  return html`<p
    class=${`liveness ${state.live ? "liveness-on" : ""}`}
    role="status"
  ><span class="pulse" aria-hidden="true"></span>${word}</p>`;
}

function Stale({ state }) {
  const now = useNow();
  if (state.live || (!state.listed && !state.error)) return null;
  return html`<div class="stale" role="alert">
    <${Icon} name="warning" />
    <p><strong>Not live${state.listed ? ` since ${clock(state.lostTime)}` : ""}.</strong> ${state.listed ? html`<span aria-hidden="true">What is shown was so ${counted((now - state.lostTime) / 1000)} ago. </span>` : ""}${state.error ? `${sentence(state.error.message)} ` : ""}The page comes back by itself.</p>
  </div>`;
}

function Settings() {
  useSignal(chosen);
  const box = useRef(null);
  const why = unavailable();
  const leave = (event) => {
    if (!box.current.contains(event.relatedTarget)) box.current.open = false;
  };
  return html`<details class="settings" ref=${box} onFocusOut=${leave} onKeyDown=${(event) => {
    if (event.key === "Escape") {
      box.current.open = false;
      box.current.querySelector("summary").focus();
    }
  }}>
    <summary aria-label="Settings" title="Settings"><${Icon} name="gear" /></summary>
    <div class="card settings-box" tabindex="-1">
      <fieldset class="segments"><legend>Colours</legend>
        ${[
          ["system", "System"],
          ["light", "Light"],
          ["dark", "Dark"],
        ].map(
          ([value, label]) =>
            html`<label key=${value}><input
              type="radio"
              name="theme"
              value=${value}
              checked=${preferences.theme === value}
              onChange=${() => choose({ theme: value })}
            /><span>${label}</span></label>`,
        )}
      </fieldset>
      <label class="field">
        <span>Your name <small>in the record of what you ask for</small></span>
        <input
          value=${preferences.actor}
          maxlength="60"
          autocomplete="nickname"
          onChange=${(event) => choose({ actor: event.target.value })}
        />
      </label>
      <label class="check"><input
        type="checkbox"
        checked=${preferences.notify && !why}
        disabled=${Boolean(why)}
        onChange=${(event) => (event.target.checked ? allow() : choose({ notify: false }))}
      />
        <span>Notifications <small>${why || "when a run pauses, ends, fails or looks wrong"}</small></span></label>
      <p class="muted"><a href="v1/docs">The interface for programs</a></p>
    </div>
  </details>`;
}

applyTheme();
watchJobs();
watchEvents();
render(html`<${App} />`, document.getElementById("app"));
