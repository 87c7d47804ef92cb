/** All that is known of a run that pauses or is paused, and whether everything is saved and free: only as it was told. */
import {
  between,
  bytes,
  count,
  counted,
  duration,
  figure,
  moment,
  number,
  plural,
  seconds,
  short,
  words,
} from "../core/format.js";
import { useNow } from "../core/clock.js";
import { html } from "../core/html.js";
import { givenUp, progress, safety, unconfirmed } from "../core/phrases.js";
import { jobPath } from "../core/router.js";
import { Facts, Notice, Section, Stat } from "../parts/basics.js";
import { Usage } from "./resources.js";

export function Banner({ job }) {
  const { saved, nothingToSave, free, idle } = safety(job);
  const gpus = job.spec?.gpuCount ? "its GPUs are free" : "it holds no worker";
  const checkpoint = job.pause?.checkpoint
    ? ` It rests on checkpoint ${short(job.pause.checkpoint)}${job.pause.checkpointSizeBytes ? `, ${bytes(number(job.pause.checkpointSizeBytes))}` : ""}${saved ? ", each part verified" : ""}.`
    : "";
  if (job.state !== "PAUSED") return null;
  if (nothingToSave && free)
    return html`<${Notice}
      kind="good"
      title=${`It had nothing to save, and ${gpus}.`}
    >It was paused before its first checkpoint, and begins at the beginning.</${Notice}>`;
  if (saved && free)
    return html`<${Notice}
      kind="good"
      title=${`Everything is saved, and ${gpus}.`}
    >${`You can go on at any time, on any equal worker.${checkpoint}`}</${Notice}>`;
  if (!free) {
    return html`<${Notice}
      kind="warn"
      title=${saved ? "Everything is saved. Whether its GPUs are free is not told." : "Whether its GPUs are free is not told."}
    >
      ${unconfirmed(job) ? "Its worker is out of reach, and has not said that the process is gone. " : "Nobody has said that its process is gone. "}${checkpoint}</${Notice}>`;
  }
  const rests = job.pause?.checkpoint || (idle && job.latestCheckpoint);
  return html`<${Notice}
    kind=${rests ? "note" : "warn"}
    title=${`It rests${rests ? " on a checkpoint" : ""}, and ${gpus}.`}
  >
    ${`${idle ? "It was waiting for a worker when it was paused." : "Whether the checkpoint was verified is not told."}${checkpoint}`}</${Notice}>`;
}

export function PausedRun({ job }) {
  const now = useNow();
  const pause = job.pause ?? {};
  const at = progress(job);
  const told = job.progress ?? {};
  const paused = job.state === "PAUSED";
  const rested = pause.pauseTime ? (now - Date.parse(pause.pauseTime)) / 1000 : null;
  const most = seconds(told.mostRemainingDuration);
  return html`<div class="stacked">
    <${Banner} job=${job} />
    <${Section} title=${paused ? "Paused" : "On its way to rest"}>
      <dl class="stats stats-plain">
        <${Stat}
          label=${paused ? "Paused at" : "Asked for"}
          value=${moment(paused ? pause.pauseTime : pause.requestTime)}
          detail=${paused && rested !== null ? `for ${counted(rested)} now` : ""}
        />
        <${Stat} label="Elapsed" value=${duration(seconds(told.activeDuration))} detail="training, pauses left out" />
        <${Stat}
          label="Remaining"
          value=${duration(seconds(told.remainingDuration))}
          detail=${most === null ? "" : `likely ${duration(seconds(told.leastRemainingDuration) ?? 0)} to ${duration(most)}`}
        />
        <${Stat}
          label="Epoch"
          value=${at.told ? `${count(at.epoch)} of ${count(at.total)}` : "not told"}
          detail=${at.epochStep ? `and ${plural(at.epochStep, "step")}` : ""}
        />
        <${Stat} label="Step" value=${at.told ? count(at.step) : "not told"} />
        <${Stat} label="Loss" value=${figure(number(told.loss))} />
      </dl>
      <${Facts} rows=${facts(job, pause, paused)} />
    </${Section}>
    ${
      (pause.usage || paused) &&
      html`<${Section} title="Used when it paused">
      ${pause.usage ? html`<${Usage} sample=${pause.usage} />` : html`<p class="muted">Not told: no sample was taken before it paused.</p>`}
    </${Section}>`
    }
  </div>`;
}

function facts(job, pause, paused) {
  const released = pause.releasedGpuMemoryBytes;
  const saved = number(pause.savedGpuSeconds);
  const holds = (job.holds ?? []).map(
    (hold) =>
      `${words(hold.kind).toLowerCase()}${hold.actor ? ` ${hold.actor}` : ""}${hold.reason ? `: ${hold.reason}` : ""}, since ${moment(hold.createTime)}`,
  );
  const mode =
    { EPOCH: "after the running epoch", STEP: "after the running step", LATEST: "at once" }[pause.mode] ??
    "after the running epoch";
  return [
    ["Why", pause.reason || "no reason was given"],
    ["By", pause.actor || null],
    ["Cause", `${words(pause.cause ?? "not told").toLowerCase()}, ${mode}`],
    [
      "Held by",
      holds.length
        ? html`<ul class="plain">${holds.map((hold) => html`<li key=${hold}>${hold}</li>`)}</ul>`
        : "nobody: it goes on by itself",
    ],
    ["Asked for", moment(pause.requestTime)],
    ["Started", job.startTime ? moment(job.startTime) : "it has not started"],
    ["Model", job.spec?.modelName || null],
    ["Data", job.spec?.datasetUri || null],
    [
      "Checkpoint",
      pause.checkpoint ? html`<a href=${jobPath(job.name, "checkpoints")}>${short(pause.checkpoint)}</a>` : "none",
    ],
    [
      "Its size",
      pause.checkpoint
        ? `${bytes(number(pause.checkpointSizeBytes))}, ${bytes(number(pause.checkpointUploadedBytes ?? 0))} uploaded for it`
        : "",
    ],
    ["Verified", pause.checkpoint ? (pause.checkpointVerified ? "yes, each part by its content" : null) : ""],
    ["Process gone", pause.releaseTime ? moment(pause.releaseTime) : pause.fromWorker ? null : "no worker had it"],
    ["GPU memory released", job.spec?.gpuCount ? (released === undefined ? null : bytes(number(released))) : ""],
    ["Given up", givenUp(pause, "gave").slice(2) || (paused ? "nothing" : "")],
    [
      "Saved so far",
      saved
        ? `${duration(saved)} of GPU time${pause.savedCost ? `, ${number(pause.savedCost.amount ?? 0).toFixed(2)} ${pause.savedCost.currency}` : ""}`
        : "",
    ],
    ["Predicted", pause.predictedBoundaryTime ? predicted(pause) : ""],
    [
      "Earlier pauses",
      (job.pastPauses ?? []).length
        ? html`<a href=${jobPath(job.name, "pauses")}>${count(job.pastPauses.length)}</a>`
        : "none",
    ],
    ["Note", pause.note ?? ""],
  ];
}

function predicted(pause) {
  const span = between(pause.requestTime, pause.predictedBoundaryTime);
  const error = seconds(pause.boundaryError);
  const off =
    error === null
      ? ""
      : Math.abs(error) < 0.05
        ? "; it was so"
        : `; it was ${duration(Math.abs(error))} ${error > 0 ? "later" : "earlier"}`;
  return `the boundary ${duration(span)} after the request${off}`;
}
