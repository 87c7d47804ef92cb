/** One job: what it does now, and by tabs all that it has told. */
import { count, duration, figure, millis, moment, number, pairs, plural, seconds, short } from "../core/format.js";
import { useNow } from "../core/clock.js";
import { html, useEffect, useMemo, useRef, useState } from "../core/html.js";
import { jobs } from "../core/jobs.js";
import { ENDED, progress, situation } from "../core/phrases.js";
import { epochsOf, stepsOf, useAnswer } from "../core/queries.js";
import { jobPath } from "../core/router.js";
import { grouped, marksOf, ofEpochs, ofSteps } from "../core/series.js";
import { useSignal } from "../core/signal.js";
import { Badge, Empty, Facts, Notice, ProgressBar, Section, Stat } from "../parts/basics.js";
import { Chart } from "../parts/chart.js";
import { announce } from "../parts/dialog.js";
import { Icon } from "../parts/icons.js";
import { Verbs } from "../parts/verbs.js";
import { Checkpoints } from "./checkpoints.js";
import { Events } from "./events.js";
import { Log } from "./log.js";
import { Pauses } from "./pauses.js";
import { PausedRun } from "./paused_run.js";
import { Resources } from "./resources.js";

/** Conditions that are no trouble. */
const CALM = new Set(["UNPLACED", "FETCHING_DATA"]);
const TABS = [
  ["", "Overview", Overview],
  ["steps", "Steps", Steps],
  ["resources", "Resources", ({ job }) => html`<${Resources} job=${job} />`],
  ["log", "Log", ({ job }) => html`<${Log} job=${job} />`],
  ["events", "Events", ({ job }) => html`<${Events} job=${job} />`],
  ["checkpoints", "Checkpoints", ({ job }) => html`<${Checkpoints} job=${job} />`],
  ["pauses", "Pauses", ({ job }) => html`<${Pauses} job=${job} />`],
];

/** `name` is `jobs/{job}`. */
export function Job({ name, tab }) {
  const state = useSignal(jobs);
  const job = state.byName.get(name);
  const seen = useRef(null);
  useEffect(() => {
    if (!job) return;
    if (seen.current && seen.current !== job.state) announce(`${short(name)} is ${job.state.toLowerCase()}`);
    seen.current = job.state;
  }, [job?.state]);
  if (!job) {
    return html`<div class="view">
      <header class="view-head"><h1>${short(name)}</h1></header>
      ${
        !state.listed
          ? html`<${Empty} title="The job is being asked for" />`
          : html`<${Empty} title=${seen.current ? "This job was deleted" : "There is no job of this name"}><a href="#/jobs">All jobs</a></${Empty}>`
      }
    </div>`;
  }
  const [, , View] = TABS.find(([key]) => key === (tab ?? "")) ?? TABS[0];
  return html`<div class=${`view ${tab === "log" ? "view-full" : ""}`}>
    <${Head} job=${job} />
    <nav class="tabs" aria-label="Of this job">
      ${TABS.map(
        ([key, label]) => html`<a
        key=${key}
        href=${jobPath(name, key)}
        aria-current=${key === (tab ?? "") ? "page" : undefined}
      >${label}</a>`,
      )}
    </nav>
    <${View} key=${`${job.uid}/${tab}`} job=${job} />
  </div>`;
}

function Head({ job }) {
  const now = useNow();
  const at = progress(job);
  return html`<header class="job-head">
    <div class="job-title">
      <a class="back" href="#/jobs" aria-label="All jobs"><${Icon} name="back" /></a>
      <h1>${short(job.name)}</h1>
      <${Badge} state=${job.state} />
      <${Verbs} job=${job} />
    </div>
    <p class="situation">${situation(job, now)}.</p>
    ${at.total > 0 && html`<${ProgressBar} share=${at.share} state=${job.state} label="Progress" />`}
    ${(job.conditions ?? []).map(
      (each) =>
        html`<${Notice}
          key=${each.type}
          kind=${CALM.has(each.type) ? "note" : "warn"}
          title=${`${each.reason || each.type}, since ${moment(each.time)}`}
        >${each.message}</${Notice}>`,
    )}
    ${
      job.failure?.reason &&
      html`<${Notice}
        kind=${job.state === "FAILED" ? "bad" : "note"}
        title=${`${job.failure.reason}${job.failure.attempt ? `, in attempt ${job.failure.attempt}` : ""}`}
      >
      <span class="pre">${job.failure.message}</span></${Notice}>`
    }
  </header>`;
}

/** Seconds of training, counted on while it trains. */
function elapsed(job, now) {
  const told = seconds(job.progress?.activeDuration);
  if (told === null || job.state !== "RUNNING" || !job.progress.reportTime) return told;
  return told + Math.min(Math.max((now - millis(job.progress.reportTime)) / 1000, 0), 5);
}

function remaining(job) {
  const told = job.progress ?? {};
  const [least, most] = [seconds(told.leastRemainingDuration), seconds(told.mostRemainingDuration)];
  return {
    about: seconds(told.remainingDuration),
    spread: most === null ? "" : `likely ${duration(least ?? 0)} to ${duration(most)}`,
  };
}

function Overview({ job }) {
  const now = useNow();
  const at = progress(job);
  const told = job.progress ?? {};
  const left = remaining(job);
  const { value, error } = useAnswer(
    epochsOf(job.name, job.attempt ?? 0),
    `${job.attempt}/${at.epoch}/${job.state}`,
    1000,
  );
  const best = told.best;
  return html`<div class="stacked">
    ${["PAUSED", "PAUSING"].includes(job.state) && html`<${PausedRun} job=${job} />`}
    <dl class="stats">
      <${Stat}
        label="Epochs"
        value=${at.total ? `${count(at.epoch)} of ${count(at.total)}` : "none"}
        detail=${at.total ? `${Math.floor((at.share ?? 0) * 100)} %` : "a task"}
      />
      <${Stat}
        label="Steps"
        value=${at.told ? count(at.step) : "not told"}
        detail=${at.epochStep ? `${count(at.epochStep)}${at.stepsPerEpoch ? ` of ${count(at.stepsPerEpoch)}` : ""} in epoch ${at.epoch + 1}` : ""}
      />
      <${Stat} label="Loss" value=${figure(number(told.loss))} />
      <${Stat}
        label="Best"
        value=${best ? figure(number(best.value ?? 0)) : "not told"}
        detail=${best ? `${best.metric}, epoch ${best.epoch}${best.staleEpochs ? `, ${plural(best.staleEpochs, "epoch")} ago` : ""}` : ""}
      />
      <${Stat} label="Training time" value=${duration(elapsed(job, now))} detail="pauses left out" />
      <${Stat}
        label="Remaining"
        value=${ENDED.has(job.state) ? "ended" : duration(left.about)}
        detail=${ENDED.has(job.state) ? "" : left.spread}
      />
    </dl>
    <${Curves} job=${job} epochs=${value?.epochs} error=${error} />
    <${Section} title="What it is"><${Facts} rows=${facts(job)} /></${Section}>
  </div>`;
}

function Curves({ job, epochs, error }) {
  const data = useMemo(() => ofEpochs(epochs ?? []), [epochs]);
  const marks = useMemo(
    () => marksOf(job, epochs ?? [], "epoch"),
    [epochs, job.pause?.pauseTime, job.pastPauses?.length],
  );
  const [log, setLog] = useState(false);
  if (!epochs)
    return error
      ? html`<${Notice} kind="bad" title="The epochs are not known">${error.message}</${Notice}>`
      : html`<${Empty} title="The epochs are being asked for" />`;
  if (!epochs.length) return html`<${Section} title="Curves"><${Empty} title="No epoch has ended yet" /></${Section}>`;
  const best = job.progress?.best;
  const actions = html`<div class="curve-actions"><${Key} marks=${marks} />
    <label class="check"><input
      type="checkbox"
      checked=${log}
      onChange=${(event) => setLog(event.target.checked)}
    /><span>Logarithmic</span></label></div>`;
  return html`<${Section} title="Curves" actions=${actions}>
    <div class="charts">
      ${grouped(data.columns.keys()).map(([title, names]) => {
        const ring =
          best && names.includes(best.metric)
            ? [
                {
                  x: best.epoch,
                  y: number(best.value ?? 0),
                  label: `best: ${figure(number(best.value ?? 0))} in epoch ${best.epoch}`,
                },
              ]
            : [];
        return html`<${Chart}
          key=${title}
          title=${title}
          log=${log}
          x=${data.x}
          marks=${marks}
          best=${ring}
          series=${names.map((name) => ({ label: name, values: data.columns.get(name) }))}
        />`;
      })}
    </div>
  </${Section}>`;
}

function Key({ marks }) {
  const kinds = new Set(marks.map((mark) => mark.kind));
  if (!kinds.size) return null;
  return html`<ul class="legend legend-marks">
    ${kinds.has("pause") && html`<li><span class="tick tick-pause" aria-hidden="true"></span>paused</li>`}
    ${kinds.has("attempt") && html`<li><span class="tick tick-attempt" aria-hidden="true"></span>another attempt</li>`}
  </ul>`;
}

function Steps({ job }) {
  const at = progress(job);
  const { value, error } = useAnswer(
    (signal) => stepsOf(job.name, signal),
    `${job.attempt}/${at.step}/${job.state}`,
    2500,
  );
  const data = useMemo(() => ofSteps(value ?? []), [value]);
  const marks = useMemo(() => marksOf(job, value ?? [], "step"), [value, job.pause?.pauseTime, job.pastPauses?.length]);
  if (!value)
    return error
      ? html`<${Notice} kind="bad" title="The steps are not known">${error.message}</${Notice}>`
      : html`<${Empty} title="The steps are being asked for" />`;
  if (!data.x.length)
    return html`<${Empty} title="No step was told yet">A training tells its steps by <code>run.log</code>, twice a second at most.</${Empty}>`;
  return html`<${Section} title="By step" actions=${html`<${Key} marks=${marks} />`}>
    <div class="charts">
      ${[...data.columns].map(
        ([name, values]) => html`<${Chart}
        key=${name}
        title=${name}
        unit="step"
        x=${data.x}
        marks=${marks}
        series=${[{ label: name, values }]}
      />`,
      )}
    </div>
  </${Section}>`;
}

function facts(job) {
  const spec = job.spec ?? {};
  const checkpoints = [
    spec.checkpointEpochs === undefined
      ? ""
      : spec.checkpointEpochs
        ? `every ${plural(spec.checkpointEpochs, "epoch")}`
        : "none at epochs",
    spec.checkpointSteps ? `every ${plural(spec.checkpointSteps, "step")}` : "",
    spec.checkpointInterval ? `every ${duration(seconds(spec.checkpointInterval))}` : "",
  ];
  return [
    ["Name", job.name],
    ["Entry point", html`<code>${spec.entryPoint}</code>`],
    ["Code", spec.bundle ? html`<code class="clip">${spec.bundle}</code>` : "installed on the workers"],
    ["Arguments", spec.args ? html`<code>${pairs(spec.args)}</code>` : ""],
    ["Model", spec.modelName ?? ""],
    ["Data", spec.datasetUri ?? ""],
    ["Labels", job.labels ? pairs(job.labels) : ""],
    ["GPUs", spec.gpuCount ? count(spec.gpuCount) : "none: a CPU slot"],
    ["Worker", job.worker ? short(job.worker) : "none"],
    ["Wanted worker", spec.workerSelector ? pairs(spec.workerSelector) : ""],
    ["Environment", spec.environment ? pairs(spec.environment) : ""],
    ["Requires", (spec.requirements ?? []).join(", ")],
    ["Seed", spec.seed ?? ""],
    ["Checkpoints", checkpoints.filter(Boolean).join(", ")],
    ["Drill", spec.drillSteps ? `${plural(spec.drillSteps, "step")}, once, in a second process` : ""],
    ["Attempts", `${count(job.attempt ?? 0)}, of which ${count(job.restartCount ?? 0)} after a failure`],
    [
      "Newest checkpoint",
      job.latestCheckpoint
        ? html`<a href=${jobPath(job.name, "checkpoints")}>${short(job.latestCheckpoint)}</a>`
        : "none",
    ],
    ["Created", `${moment(job.createTime)}${job.creator ? ` by ${job.creator}` : ""}`],
    ["Started", job.startTime ? moment(job.startTime) : ""],
    ["Ended", job.endTime ? moment(job.endTime) : ""],
    ["Unique id", html`<code>${job.uid}</code>`],
    ["Anew", html`<a href=${`#/new?from=${encodeURIComponent(job.name)}`}>A new job like this one</a>`],
  ];
}
