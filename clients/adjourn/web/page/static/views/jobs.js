/** All jobs, live: filtered by state, label and text; only the rows in sight are drawn. */
import {
  NOT_TOLD,
  ago,
  count,
  counted,
  duration,
  figure,
  number,
  pairs,
  plural,
  seconds,
  short,
} from "../core/format.js";
import { useNow } from "../core/clock.js";
import { html, useEffect, useMemo, useState } from "../core/html.js";
import { jobs } from "../core/jobs.js";
import { ENDED, STATES, progress } from "../core/phrases.js";
import { jobPath, route } from "../core/router.js";
import { useSignal } from "../core/signal.js";
import { Badge, Empty, ProgressBar } from "../parts/basics.js";
import { Icon } from "../parts/icons.js";
import { Verbs } from "../parts/verbs.js";
import { VirtualList } from "../parts/virtual_list.js";

const VERBS = ["pause", "resume", "cancel", "delete"];
const NARROW = matchMedia("(max-width: 760px)");

function useNarrow() {
  const [narrow, setNarrow] = useState(NARROW.matches);
  useEffect(() => {
    const change = () => setNarrow(NARROW.matches);
    NARROW.addEventListener("change", change);
    return () => NARROW.removeEventListener("change", change);
  }, []);
  return narrow;
}

/** Returns what a person has typed: words, and labels as `key=value`. */
export function parsed(text) {
  const parts = text.toLowerCase().split(/\s+/).filter(Boolean);
  return {
    labels: parts.filter((part) => /^[^=]+=[^=]*$/.test(part)).map((part) => part.split("=")),
    words: parts.filter((part) => !/^[^=]+=[^=]*$/.test(part)),
  };
}

/** Returns whether a job is what was asked for. */
export function matches(job, { labels, words }) {
  const own = Object.entries(job.labels ?? {}).map(([key, value]) => [key.toLowerCase(), value.toLowerCase()]);
  if (!labels.every(([key, value]) => own.some((label) => label[0] === key && label[1].startsWith(value))))
    return false;
  if (!words.length) return true;
  const spec = job.spec ?? {};
  const text = [job.name, spec.entryPoint, spec.modelName, spec.datasetUri, job.worker, ...own.flat()]
    .join(" ")
    .toLowerCase();
  return words.every((word) => text.includes(word));
}

export function Jobs() {
  const state = useSignal(jobs);
  const { query } = useSignal(route);
  const now = useNow();
  const narrow = useNarrow();
  const text = query.get("q") ?? "";
  const states = new Set((query.get("state") ?? "").split(",").filter(Boolean));

  const choose = (changes) => {
    const next = new URLSearchParams(query);
    for (const [key, value] of Object.entries(changes)) value ? next.set(key, value) : next.delete(key);
    history.replaceState(null, "", `#/jobs${next.size ? `?${next}` : ""}`);
    route.set({ path: ["jobs"], query: next });
  };
  const asked = parsed(text);
  const found = [...state.byName.values()].filter((job) => matches(job, asked));
  const counts = Object.fromEntries(STATES.map((each) => [each, 0]));
  for (const job of found) counts[job.state] = (counts[job.state] ?? 0) + 1;
  const shown = (states.size ? found.filter((job) => states.has(job.state)) : found).sort(newestFirst);
  const toggle = (each) => {
    const next = new Set(states);
    if (!next.delete(each)) next.add(each);
    choose({ state: [...next].join(",") });
  };
  const labels = useMemo(() => knownLabels(state.byName), [state.byName, state.byName.size]);

  return html`<div class="view view-full">
    <header class="view-head">
      <h1>Jobs</h1>
      <a class="button button-primary" href="#/new"><${Icon} name="plus" />New job</a>
    </header>
    <div class="filters" role="search">
      <label class="search"><span class="hidden">Find jobs by name, model, worker or label=value</span><${Icon} name="search" />
        <input
          type="search"
          placeholder="Name, model, worker, label=value"
          value=${text}
          list="labels"
          onInput=${(event) => choose({ q: event.target.value })}
        /></label>
      <datalist id="labels">${labels.map((label) => html`<option key=${label} value=${label}></option>`)}</datalist>
      <div class="chips" role="group" aria-label="States">
        ${Object.keys(counts)
          .filter((each) => counts[each] || states.has(each))
          .map(
            (each) =>
              html`<button
                key=${each}
                type="button"
                class=${`chip chip-${each.toLowerCase()}`}
                aria-pressed=${states.has(each)}
                onClick=${() => toggle(each)}
              >${each.toLowerCase().replaceAll("_", " ")} <b>${count(counts[each])}</b></button>`,
          )}
        ${
          (states.size > 0 || text) &&
          html`<button
          type="button"
          class="chip chip-clear"
          onClick=${() => choose({ q: "", state: "" })}
        >Show all</button>`
        }
      </div>
      <p class="found" role="status">
        ${!state.listed ? "" : shown.length === state.byName.size ? plural(shown.length, "job") : `${count(shown.length)} of ${plural(state.byName.size, "job")}`}
      </p>
    </div>
    ${
      !state.listed
        ? html`<${Empty} title="The jobs are being asked for" />`
        : !state.byName.size
          ? html`<${Empty} title="There are no jobs yet"><a href="#/new">Make the first one</a>, or <code>adjourn submit train.py</code></${Empty}>`
          : !shown.length
            ? html`<${Empty} title="No job is like this">Other states or words may find some.</${Empty}>`
            : html`<div class="table card" role="table" aria-label="Jobs" aria-rowcount=${shown.length + 1}>
              ${
                !narrow &&
                html`<div role="rowgroup"><div class="job-row table-head" role="row" aria-rowindex="1">
                ${["State", "Job", "Progress", "Loss", "Left", "Worker", "Changed", "Actions"].map((title) => html`<span key=${title} role="columnheader" class=${title === "Actions" ? "column-verbs" : ""}>${title}</span>`)}
              </div></div>`
              }
              <${VirtualList}
                length=${shown.length}
                height=${narrow ? 112 : 60}
                className="table-body"
                row=${(index) => html`<${Row}
                  key=${shown[index].uid}
                  job=${shown[index]}
                  index=${index}
                  now=${now}
                  narrow=${narrow}
                />`}
              />
            </div>`
    }
  </div>`;
}

function newestFirst(one, other) {
  const [a, b] = [ENDED.has(one.state), ENDED.has(other.state)];
  if (a !== b) return a ? 1 : -1;
  return (other.createTime ?? "").localeCompare(one.createTime ?? "") || one.name.localeCompare(other.name);
}

function knownLabels(byName) {
  const found = new Set();
  for (const job of byName.values())
    for (const [key, value] of Object.entries(job.labels ?? {})) found.add(`${key}=${value}`);
  return [...found].sort().slice(0, 200);
}

function Row({ job, index, now, narrow }) {
  const at = progress(job);
  const left = seconds(job.progress?.remainingDuration);
  const loss = number(job.progress?.loss);
  const validation = number(job.progress?.metrics?.val_loss);
  const about = [job.spec?.modelName || job.spec?.entryPoint, pairs(job.labels)].filter(Boolean).join(" · ");
  const changed = job.progress?.reportTime > job.stateTime ? job.progress.reportTime : job.stateTime;
  const trouble = (job.conditions ?? [])[0];
  const bar = html`<${ProgressBar} share=${at.share} state=${job.state} label=${`Progress of ${short(job.name)}`} />
    <small class="numbers">${at.total ? `${count(at.epoch)} / ${count(at.total)} epochs` : at.step ? plural(at.step, "step") : "no epochs"}</small>`;
  const name = html`<a class="job-name" href=${jobPath(job.name)}>${short(job.name)}</a>
    <small class="muted clip" title=${about}>${trouble ? html`<span class="trouble">${trouble.reason || trouble.type}</span> · ` : ""}${about}</small>`;
  if (narrow) {
    const when = left === null || job.state !== "RUNNING" ? ago(changed, now) : `${duration(left)} left`;
    return html`<div class="job-card" role="row" aria-rowindex=${index + 2}>
      <div role="cell" class="job-card-head"><div class="stack">${name}</div><${Badge} state=${job.state} /></div>
      <div role="cell" class="stack">${bar}</div>
      <div role="cell" class="job-card-foot"><small class="muted numbers">${loss === null ? "" : `loss ${figure(loss)} · `}${when}</small>
        <${Verbs} job=${job} compact=${true} only=${VERBS} /></div>
    </div>`;
  }
  return html`<div class="job-row" role="row" aria-rowindex=${index + 2}>
    <span role="cell"><${Badge} state=${job.state} /></span>
    <span role="cell" class="stack">${name}</span>
    <span role="cell" class="stack">${bar}</span>
    <span role="cell" class="numbers stack">
      ${loss === null ? html`<span class="unknown">–<span class="hidden">${NOT_TOLD}</span></span>` : figure(loss)}
      ${validation !== null && html`<small>val ${figure(validation)}</small>`}
    </span>
    <span role="cell" class="numbers">
      ${job.state !== "RUNNING" ? "" : left === null ? html`<span class="unknown">${NOT_TOLD}</span>` : counted(left)}
    </span>
    <span role="cell" class="clip">${job.worker ? short(job.worker) : ""}</span>
    <span role="cell" class="muted numbers">${ago(changed, now)}</span>
    <span role="cell"><${Verbs} job=${job} compact=${true} only=${VERBS} /></span>
  </div>`;
}
