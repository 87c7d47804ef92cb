/** Pause, resume, cancel, delete: the questions that are asked first, and the buttons that ask them. */
import { CallError, call, path } from "../core/api.js";
import { between, duration, plural, seconds, short } from "../core/format.js";
import { html, useEffect, useState } from "../core/html.js";
import { jobs } from "../core/jobs.js";
import { nextBoundary, position, prediction, progress, refusal } from "../core/phrases.js";
import { requestId } from "../core/request_id.js";
import { go } from "../core/router.js";
import { useSignal } from "../core/signal.js";
import { Action } from "./basics.js";
import { Choices, Question, Reason, open } from "./dialog.js";

const NOT_LIVE = "What is shown may be old: the page is not live";
const GONE = "The job is gone";

/** Returns the job as it is now, and why a verb would be refused. */
function useVerb(verb, given) {
  const state = useSignal(jobs);
  const found = state.byName.get(given.name);
  const job = found && found.uid === given.uid ? found : null;
  const why = !state.live ? NOT_LIVE : !job ? GONE : refusal(verb, job);
  return [job ?? given, why];
}

/** Returns the newest checkpoint of a job; null until it is known, or if there is none. */
function useCheckpoint(job) {
  const [checkpoint, setCheckpoint] = useState(null);
  useEffect(() => {
    if (!job.latestCheckpoint) return undefined;
    const wanted = new AbortController();
    call("GET", path(job.latestCheckpoint), { signal: wanted.signal }).then(setCheckpoint, () => {});
    return () => wanted.abort();
  }, [job.latestCheckpoint]);
  return checkpoint;
}

/** Says what would be given up if training stopped now. */
function lost(job, checkpoint) {
  if (!job.latestCheckpoint) return "All that it has trained would be given up: it has no checkpoint.";
  if (!checkpoint) return "What was trained since its newest checkpoint is given up.";
  const steps = progress(job).step - (checkpoint.step ?? 0);
  const spent = (seconds(job.progress?.activeDuration) ?? 0) - (seconds(checkpoint.activeDuration) ?? 0);
  if (steps <= 0)
    return "Nothing is given up, as far as is known: its newest checkpoint has every step that it has told of.";
  return `Gives up ${plural(steps, "step")} since its newest checkpoint, ${duration(spent)} of training so far.`;
}

function boundary(job) {
  const next = nextBoundary(job);
  if (next.last) return "It is in its last epoch: it will finish rather than pause.";
  const when =
    next.seconds === null ? "; when is not known yet" : `, in about ${duration(next.seconds)} by its pace so far`;
  return `Likely after epoch ${next.epoch}${when}: its worker says it for certain. Nothing is lost.`;
}

/** An id that is one and the same for all tries of what was chosen: a repeated request is done once. */
function useRequestId(...chosen) {
  const [id, setId] = useState(requestId);
  useEffect(() => setId(requestId()), chosen);
  return id;
}

function Pause({ job: given, close }) {
  const [job, why] = useVerb("pause", given);
  const checkpoint = useCheckpoint(job);
  const [mode, setMode] = useState("EPOCH");
  const [reason, setReason] = useState("");
  const id = useRequestId(mode, reason);
  const waiting = job.state === "QUEUED";
  const act = async () => {
    const answer = await call("POST", path(job.name, ":pause"), { body: { mode, reason, requestId: id } });
    return `${short(job.name)}: ${answer.state === "PAUSED" ? "paused" : prediction(answer, Date.now())}`;
  };
  return html`<${Question} title=${`Pause ${short(job.name)}?`} verb="Pause" why=${why} act=${act} close=${close}>
    ${
      waiting
        ? html`<p>It waits for a worker. It rests at once, ${position(job)}, and holds no worker.</p>`
        : html`<${Choices} legend="When" name="mode" value=${mode} onChange=${setMode} options=${[
            { value: "EPOCH", label: "After the running epoch", detail: boundary(job) },
            {
              value: "STEP",
              label: "After the running step",
              detail: "Where training can be cut amid an epoch, else after the epoch. Nothing is lost.",
            },
            {
              value: "LATEST",
              label: "Now",
              detail: lost(job, checkpoint),
              why: job.latestCheckpoint ? "" : "It has no checkpoint that it could go on from",
            },
          ]} />`
    }
    <${Reason} value=${reason} onChange=${setReason} />
  </${Question}>`;
}

/** What became of a job that is not queued when it was resumed. */
const RESUMED = { RUNNING: "trains on, it had not left yet", PAUSED: "still held by an operator" };

function Resume({ job: given, close }) {
  const [job, why] = useVerb("resume", given);
  const [allowInexact, setAllowInexact] = useState(false);
  const id = useRequestId(allowInexact);
  const act = async () => {
    const answer = await call("POST", path(job.name, ":resume"), { body: { allowInexact, requestId: id } });
    return `${short(job.name)}: ${RESUMED[answer.state] ?? `queued, goes on ${position(job)}`}`;
  };
  return html`<${Question} title=${`Resume ${short(job.name)}?`} verb="Resume" why=${why} act=${act} close=${close}>
    ${
      job.state === "PAUSING"
        ? html`<p>It is on its way to rest. If its process has not left yet, it simply trains on.</p>`
        : html`<p>It goes on ${position(job)}${job.pause?.checkpoint ? html`, from checkpoint <code>${short(job.pause.checkpoint)}</code>` : ""}, as soon as a worker is free. The restored state is compared with the saved one before the first step.</p>`
    }
    <label class="check"><input
      type="checkbox"
      checked=${allowInexact}
      onChange=${(event) => setAllowInexact(event.target.checked)}
    />
      <span>Accept another environment <small>Other GPUs or versions may change the last bits of the result.</small></span></label>
  </${Question}>`;
}

function Cancel({ job: given, close }) {
  const [job, why] = useVerb("cancel", given);
  const checkpoint = useCheckpoint(job);
  const resting = ["QUEUED", "PAUSED"].includes(job.state);
  const saves = Boolean(job.spec?.totalEpochs) && !resting && job.state !== "CANCELLING";
  const [chosen, setHow] = useState("EPOCH");
  const [reason, setReason] = useState("");
  const id = useRequestId(chosen, reason);
  const how = saves ? chosen : "NOW";
  const act = async () => {
    const saving = how === "NOW" ? {} : { saveCheckpoint: true, mode: how };
    const answer = await call("POST", path(job.name, ":cancel"), { body: { reason, requestId: id, ...saving } });
    return `${short(job.name)}: ${answer.state === "CANCELLED" ? "stopped for good" : how === "NOW" ? "is being stopped" : "is saved, then stopped"}`;
  };
  return html`<${Question}
    title=${`Cancel ${short(job.name)}?`}
    verb=${how === "NOW" ? "Cancel it" : "Save and cancel"}
    kind="danger"
    why=${why}
    act=${act}
    close=${close}
    otherwise="Keep it"
  >
    ${resting && html`<p>No worker has it. It is stopped at once, ${position(job)}${job.latestCheckpoint ? ", and keeps its newest checkpoint" : ""}.</p>`}
    ${
      saves &&
      html`<${Choices} legend="How" name="how" value=${chosen} onChange=${setHow} options=${[
        {
          value: "EPOCH",
          label: "Save after the running epoch",
          detail: boundary(job).replace("finish rather than pause", "finish"),
        },
        {
          value: "STEP",
          label: "Save after the running step",
          detail: "Where training can be cut amid an epoch, else after the epoch.",
        },
        { value: "NOW", label: "Now, without saving", detail: lost(job, checkpoint) },
      ]} />`
    }
    ${!resting && !saves && html`<p>It is stopped now${job.state === "CANCELLING" && ", not at its boundary"}. ${lost(job, checkpoint)}</p>`}
    <${Reason} value=${reason} onChange=${setReason} />
  </${Question}>`;
}

function Delete({ job: given, close }) {
  const [job, why] = useVerb("delete", given);
  const id = useRequestId();
  const act = async () => {
    await call("DELETE", path(job.name), { query: { etag: job.etag, requestId: id } });
    if (location.hash.startsWith(`#/${job.name}`)) go("#/jobs");
    return `${short(job.name)} is deleted`;
  };
  return html`<${Question}
    title=${`Delete ${short(job.name)}?`}
    verb="Delete for good"
    kind="danger"
    why=${why}
    act=${act}
    close=${close}
    otherwise="Keep it"
  >
    <p>
      Its record, its history and all of its checkpoints are removed, ${plural(progress(job).epoch, "epoch")} of training
      with them. This cannot be taken back.
    </p>
    ${job.startTime && job.endTime && html`<p class="muted">It ran for ${duration(between(job.startTime, job.endTime))} from start to end.</p>`}
  </${Question}>`;
}

function Release({ job: given, close }) {
  const [job, why] = useVerb("release", given);
  const holds = (job.holds ?? []).filter((hold) => hold.kind === "OPERATOR");
  const act = async () => {
    const answer = await call("POST", "v1/jobs:release", { body: { names: [job.name] } });
    const [outcome] = answer.jobs ?? [];
    if (outcome?.reason) throw new CallError(outcome.message, { reason: outcome.reason });
    return `${short(job.name)}: ${outcome ? `no operator holds it, ${outcome.state.toLowerCase()}` : "no operator held it"}`;
  };
  const others = (job.holds ?? []).length > holds.length;
  return html`<${Question} title=${`Release ${short(job.name)}?`} verb="Release" why=${why} act=${act} close=${close}>
    ${holds.map((hold) => html`<p key="hold">${hold.actor || "Somebody"} holds it${hold.reason && `: ${hold.reason}`}.</p>`)}
    <p>${others ? "It stays paused: it was paused by itself as well." : "It goes on as soon as a worker is free."}</p>
  </${Question}>`;
}

const BUTTONS = [
  ["pause", "Pause", "pause", Pause],
  ["resume", "Resume", "play", Resume],
  ["release", "Release", "open", Release],
  ["cancel", "Cancel", "stop", Cancel],
  ["delete", "Delete", "trash", Delete],
];

/** The buttons of a job; what would be refused says why. */
export function Verbs({ job, compact = false, only }) {
  const state = useSignal(jobs);
  const primary = refusal("resume", job) ? "pause" : "resume";
  return html`<div class="verbs" role="group" aria-label=${`What to do with ${short(job.name)}`}>
    ${BUTTONS.filter(([verb]) => (!only || only.includes(verb)) && (verb !== "release" || !refusal(verb, job))).map(
      ([verb, label, icon, Component]) => html`<${Action}
        key=${verb}
        label=${label}
        icon=${icon}
        compact=${compact}
        name=${short(job.name)}
        kind=${compact ? "quiet" : verb === primary ? "primary" : verb === "cancel" || verb === "delete" ? "careful" : ""}
        why=${state.live ? refusal(verb, job) : NOT_LIVE}
        onClick=${() => open(Component, { job })}
      />`,
    )}
  </div>`;
}
