/** All runs that rest or are on their way to it, with what was told of each. */
import { count, counted, duration, figure, number, seconds, short } from "../core/format.js";
import { useNow } from "../core/clock.js";
import { html } from "../core/html.js";
import { jobs } from "../core/jobs.js";
import { position, prediction, progress, safety } from "../core/phrases.js";
import { jobPath } from "../core/router.js";
import { useSignal } from "../core/signal.js";
import { Badge, Empty, ProgressBar } from "../parts/basics.js";
import { Icon } from "../parts/icons.js";
import { Verbs } from "../parts/verbs.js";

const SHOWN = 200;

export function pausedOf(state) {
  const rank = (job) => (job.state === "PAUSING" ? 0 : 1);
  return [...state.byName.values()]
    .filter((job) => job.state === "PAUSED" || job.state === "PAUSING")
    .sort((a, b) => rank(a) - rank(b) || (b.stateTime ?? "").localeCompare(a.stateTime ?? ""));
}

export function Paused() {
  const state = useSignal(jobs);
  const now = useNow();
  const found = pausedOf(state);
  const saved = found.reduce((sum, job) => sum + (number(job.pause?.savedGpuSeconds) ?? 0), 0);
  return html`<div class="view">
    <header class="view-head">
      <h1>Paused runs</h1>
      ${saved > 0 && html`<p class="muted">${duration(saved)} of GPU time not used meanwhile, as last told</p>`}
    </header>
    ${
      !state.listed
        ? html`<${Empty} title="The jobs are being asked for" />`
        : !found.length
          ? html`<${Empty} title="Nothing is paused">A run that you pause rests here, with all that it has reached, until you resume it.</${Empty}>`
          : html`<ul class="cards">${found.slice(0, SHOWN).map((job) => html`<${Card} key=${job.uid} job=${job} now=${now} />`)}</ul>
            ${found.length > SHOWN && html`<p class="muted">and ${count(found.length - SHOWN)} more: <a href="#/jobs?state=PAUSED">all paused jobs</a></p>`}`
    }
  </div>`;
}

function Card({ job, now }) {
  const at = progress(job);
  const pause = job.pause ?? {};
  const { saved, free, nothingToSave } = safety(job);
  const paused = job.state === "PAUSED";
  const rested = pause.pauseTime ? (now - Date.parse(pause.pauseTime)) / 1000 : null;
  const gpus = job.spec?.gpuCount ? "GPUs free" : "worker free";
  return html`<li class="card paused-card">
    <header>
      <div class="stack">
        <h2><a class="job-name" href=${jobPath(job.name)}>${short(job.name)}</a></h2>
        <small class="muted clip">${job.spec?.modelName || job.spec?.entryPoint}</small>
      </div>
      <${Badge} state=${job.state} />
    </header>
    <p class="paused-when">
      ${paused ? html`Rests ${position(job)}${rested === null ? "" : html`, for <b class="numbers">${counted(rested)}</b>`}` : `${prediction(job, now)}.`}
    </p>
    <${ProgressBar} share=${at.share} state=${job.state} label=${`Progress of ${short(job.name)}`} />
    <dl class="stats stats-small">
      <div><dt>Epoch</dt><dd>${count(at.epoch)} / ${count(at.total)}</dd></div>
      <div><dt>Step</dt><dd>${count(at.step)}</dd></div>
      <div>
        <dt>Loss</dt>
        <dd class=${job.progress?.loss === undefined ? "unknown" : ""}>${figure(number(job.progress?.loss))}</dd>
      </div>
      <div><dt>Elapsed</dt><dd>${duration(seconds(job.progress?.activeDuration))}</dd></div>
    </dl>
    <p class="paused-why">${pause.reason || html`<span class="muted">No reason was given</span>`}${pause.actor && html`<small class="muted"> ${pause.actor}</small>`}</p>
    <footer>
      ${
        paused
          ? html`<span class=${`known ${(saved || nothingToSave) && free ? "known-good" : ""}`}>${(saved || nothingToSave) && free && html`<${Icon} name="check" />`}${saved ? "Saved" : nothingToSave ? "Nothing to save" : "Saved: not told"} · ${free ? gpus : "release: not told"}</span>`
          : html`<span class="known">On its way to rest</span>`
      }
      <${Verbs} job=${job} only=${["resume", "release", "cancel"]} compact=${true} />
    </footer>
  </li>`;
}
