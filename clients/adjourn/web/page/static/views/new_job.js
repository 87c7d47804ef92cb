/** A new job: an entry point that workers have, or a script that goes along. */
import { call } from "../core/api.js";
import { html, useEffect, useRef, useState } from "../core/html.js";
import { jobs } from "../core/jobs.js";
import { requestId } from "../core/request_id.js";
import { go, jobPath, route } from "../core/router.js";
import { useSignal } from "../core/signal.js";
import { Empty, Refused } from "../parts/basics.js";
import { announce } from "../parts/dialog.js";

const BLANK = {
  jobId: "",
  code: "script",
  entryPoint: "",
  function: "main",
  epochs: "10",
  gpus: "0",
  args: [],
  labels: "",
  model: "",
  data: "",
  seed: "",
  restarts: "",
  checkpointEpochs: "",
  selector: "",
  environment: "",
  requirements: "",
};

/** Fields of the request, and the inputs that have them. */
const FIELDS = {
  job_id: "jobId",
  "job.spec.entry_point": "entryPoint",
  entry_point: "function",
  "job.spec.total_epochs": "epochs",
  "job.spec.gpu_count": "gpus",
  "job.labels": "labels",
  "job.spec.model_name": "model",
  "job.spec.dataset_uri": "data",
  "job.spec.seed": "seed",
  "job.spec.max_restarts": "restarts",
  "job.spec.checkpoint_epochs": "checkpointEpochs",
  "job.spec.worker_selector": "selector",
  "job.spec.environment": "environment",
  "job.spec.requirements": "requirements",
  "job.spec.args": "args",
  "job.spec.bundle": "file",
};

/** What is in a field cannot be meant. */
class FieldError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

/** Returns a value as it was meant: JSON where it is some, else text. */
export function meant(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Returns `{a: "1"}` of `a=1, b=2` or lines; throws with what is wrong. */
export function named(text) {
  const found = {};
  for (const part of text
    .split(/[,\n]/)
    .map((each) => each.trim())
    .filter(Boolean)) {
    const at = part.indexOf("=");
    if (at < 1) throw new Error(`"${part}" is no name=value`);
    found[part.slice(0, at).trim()] = part.slice(at + 1).trim();
  }
  return found;
}

/** Returns the spec of a job in the form's fields. */
function fieldsOf(job) {
  const spec = job.spec ?? {};
  return {
    ...BLANK,
    code: spec.bundle ? "same" : "installed",
    entryPoint: spec.entryPoint ?? "",
    epochs: String(spec.totalEpochs ?? 0),
    gpus: String(spec.gpuCount ?? 0),
    args: Object.entries(spec.args ?? {})
      .sort()
      .map(([name, value]) => ({
        name,
        value: typeof value === "string" && meant(value) === value ? value : JSON.stringify(value),
      })),
    labels: lines(job.labels),
    model: spec.modelName ?? "",
    data: spec.datasetUri ?? "",
    restarts: spec.maxRestarts === undefined ? "" : String(spec.maxRestarts),
    checkpointEpochs: spec.checkpointEpochs === undefined ? "" : String(spec.checkpointEpochs),
    selector: lines(spec.workerSelector),
    environment: lines(spec.environment),
    requirements: (spec.requirements ?? []).join("\n"),
    bundle: spec.bundle ?? "",
  };
}

function lines(values) {
  return Object.entries(values ?? {})
    .map(([key, value]) => `${key}=${value}`)
    .join("\n");
}

/** Returns the job that was asked for; throws FieldError for what cannot be meant. */
function jobOf(fields, bundle) {
  const whole = (field, least = 0) => {
    if (!/^-?\d+$/.test(fields[field].trim()) || Number(fields[field]) < least)
      throw new FieldError(field, `must be a whole number from ${least}`);
    return Number(fields[field]);
  };
  const pairsOf = (field) => {
    try {
      return named(fields[field]);
    } catch (error) {
      throw new FieldError(field, error.message);
    }
  };
  const spec = {
    entryPoint: fields.entryPoint.trim(),
    totalEpochs: whole("epochs"),
    gpuCount: whole("gpus"),
    modelName: fields.model.trim(),
    datasetUri: fields.data.trim(),
  };
  if (bundle) spec.bundle = bundle;
  const args = Object.fromEntries(
    fields.args.filter((each) => each.name.trim()).map((each) => [each.name.trim(), meant(each.value)]),
  );
  if (Object.keys(args).length) spec.args = args;
  if (fields.seed.trim()) spec.seed = String(whole("seed", -Infinity));
  if (fields.restarts.trim()) spec.maxRestarts = whole("restarts");
  if (fields.checkpointEpochs.trim()) spec.checkpointEpochs = whole("checkpointEpochs");
  if (fields.selector.trim()) spec.workerSelector = pairsOf("selector");
  if (fields.environment.trim()) spec.environment = pairsOf("environment");
  if (fields.requirements.trim())
    spec.requirements = fields.requirements
      .split("\n")
      .map((each) => each.trim())
      .filter(Boolean);
  return { spec, labels: pairsOf("labels") };
}

/** The form, filled in as the job that `?from=` names. */
export function NewJob() {
  const state = useSignal(jobs);
  const { query } = useSignal(route);
  const from = query.get("from");
  if (from && !state.listed) return html`<div class="view"><${Empty} title="The job is being asked for" /></div>`;
  const like = from && state.byName.get(from);
  return html`<${Form} key=${from} blank=${like ? fieldsOf(like) : BLANK} />`;
}

function Form({ blank }) {
  const [fields, setFields] = useState(blank);
  const [file, setFile] = useState(null);
  const [errors, setErrors] = useState({});
  const [failure, setFailure] = useState(null);
  const [busy, setBusy] = useState(false);
  const form = useRef(null);
  const id = useRef(null);
  const change = (changes) => {
    id.current = null;
    setFields((old) => ({ ...old, ...changes }));
  };
  const argument = (at, changes) =>
    change({ args: fields.args.map((each, index) => (index === at ? { ...each, ...changes } : each)) });
  useEffect(() => {
    const first = Object.keys(errors)[0];
    if (first) form.current.querySelector(`[name="${first}"]`)?.focus();
  }, [errors]);

  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    setErrors({});
    setFailure(null);
    try {
      const chosen = { ...fields };
      if (fields.code === "script") {
        if (!file) throw new FieldError("file", "choose a script");
        chosen.entryPoint = `${file.name.replace(/\.py$/, "")}:${fields.function.trim() || "main"}`;
      } else if (!fields.entryPoint.trim()) throw new FieldError("entryPoint", "must be package.module:function");
      jobOf(chosen, ""); // what is wrong with it is told before anything is sent
      setBusy(true);
      let bundle = fields.code === "same" ? fields.bundle : "";
      if (fields.code === "script") {
        const answer = await call("POST", "v1/bundles", {
          query: { entry_point: chosen.entryPoint },
          body: file,
          type: "text/x-python",
        });
        bundle = answer.bundle;
      }
      id.current ??= requestId();
      const made = await call("POST", "v1/jobs", {
        query: { jobId: fields.jobId.trim(), requestId: id.current },
        body: jobOf(chosen, bundle),
      });
      announce(`${made.name} is queued`);
      go(jobPath(made.name));
    } catch (error) {
      setBusy(false);
      if (error instanceof FieldError) setErrors({ [error.field]: error.message });
      else {
        const told = Object.fromEntries(
          Object.entries(error.violations ?? {}).map(([field, why]) => [
            Object.entries(FIELDS).find(
              ([key]) => field === key || field.startsWith(`${key}[`) || field.startsWith(`${key}.`),
            )?.[1] ?? "",
            why,
          ]),
        );
        delete told[""];
        setErrors(told);
        setFailure(error);
      }
    }
  };
  const field = (name, label, { hint = "", type = "text", area = false, ...more } = {}) => {
    const shared = {
      id: `field-${name}`,
      name,
      value: fields[name],
      autocomplete: "off",
      spellcheck: false,
      "aria-invalid": errors[name] ? "true" : undefined,
      "aria-describedby": errors[name] ? `error-${name}` : hint ? `hint-${name}` : undefined,
      onInput: (event) => change({ [name]: event.target.value }),
      ...more,
    };
    return html`<div class="field">
      <label for=${`field-${name}`}>${label}</label>
      ${area ? html`<textarea rows="3" ...${shared}></textarea>` : html`<input type=${type} ...${shared} />`}
      ${errors[name] ? html`<p class="field-error" id=${`error-${name}`}>${errors[name]}</p>` : hint && html`<small id=${`hint-${name}`}>${hint}</small>`}
    </div>`;
  };
  const kind = (value, label) =>
    html`<label class="choice"><input
      type="radio"
      name="code"
      value=${value}
      checked=${fields.code === value}
      onChange=${() => change({ code: value })}
    /><span><strong>${label}</strong></span></label>`;

  return html`<div class="view view-narrow">
    <header class="view-head"><h1>New job</h1></header>
    <form class="form" ref=${form} onSubmit=${submit} novalidate>
      <section class="card" aria-labelledby="what"><h2 id="what">What to train</h2>
        <fieldset class="choices choices-row"><legend class="hidden">Code</legend>
          ${fields.bundle && kind("same", "The code of that job")}
          ${kind("script", "Upload a script")}
          ${kind("installed", "Installed on the workers")}
        </fieldset>
        ${
          fields.code === "script"
            ? html`<div class="field-row">
              <div class="field"><label for="field-file">Script</label>
                <input id="field-file" name="file" type="file" accept=".py,text/x-python" aria-invalid=${errors.file ? "true" : undefined} aria-describedby=${errors.file ? "error-file" : "hint-file"} onChange=${(
                  event,
                ) => {
                  id.current = null;
                  setFile(event.target.files[0] ?? null);
                }} />
                ${errors.file ? html`<p class="field-error" id="error-file">${errors.file}</p>` : html`<small id="hint-file">One Python file of at most 1 MiB. For more files: <code>adjourn submit</code></small>`}
              </div>
              ${field("function", "Function", { hint: "It gets the run" })}
            </div>`
            : field("entryPoint", "Entry point", {
                hint: "package.module:function, such as adjourn.examples.digits:main",
                placeholder: "package.module:function",
              })
        }
        <div class="field-row">${field("epochs", "Epochs", { inputmode: "numeric", hint: "0: a task, which cannot pause" })}
          ${field("gpus", "GPUs", { inputmode: "numeric", hint: "0: a CPU slot" })}</div>
      </section>
      <section class="card" aria-labelledby="args"><h2 id="args">Arguments</h2>
        ${fields.args.map(
          (each, at) => html`<div class="pair" key=${at}>
            <input
              aria-label=${`Name of argument ${at + 1}`}
              placeholder="name"
              value=${each.name}
              onInput=${(event) => argument(at, { name: event.target.value })}
            />
            <input
              aria-label=${`Value of argument ${at + 1}`}
              placeholder="value"
              value=${each.value}
              onInput=${(event) => argument(at, { value: event.target.value })}
            />
            <button
              type="button"
              class="button button-quiet"
              aria-label=${`Remove argument ${at + 1}`}
              onClick=${() => change({ args: fields.args.filter((_, index) => index !== at) })}
            >Remove</button>
          </div>`,
        )}
        ${errors.args && html`<p class="field-error">${errors.args}</p>`}
        <button
          type="button"
          class="button"
          onClick=${() => change({ args: [...fields.args, { name: "", value: "" }] })}
        >Add an argument</button>
      </section>
      <section class="card" aria-labelledby="names"><h2 id="names">Names</h2>
        <div class="field-row">${field("jobId", "Name", { hint: "a-z, 0-9, -; empty: one is chosen", maxlength: "63" })}
          ${field("labels", "Labels", { hint: "team=vision, kind=sweep" })}</div>
        <div class="field-row">${field("model", "Model", { hint: "For people" })}
          ${field("data", "Data", { hint: "For people" })}</div>
      </section>
      <details class="card"><summary><h2>More</h2></summary>
        <div class="field-row">${field("seed", "Seed", { hint: "Empty: one is chosen" })}
          ${field("restarts", "Restarts after failures", { hint: "Empty: 3" })}
          ${field("checkpointEpochs", "Epochs between checkpoints", { hint: "Empty: 1; 0: only when pausing" })}</div>
        ${field("selector", "Labels that the worker must have", { hint: "name=value, by commas or lines" })}
        ${field("requirements", "Required distributions", { area: true, hint: "One a line, such as einops>=0.7" })}
        ${field("environment", "Environment variables", { area: true, hint: "name=value, one a line; everybody can read them" })}
      </details>
      ${failure && html`<${Refused} failure=${failure} />`}
      <footer class="form-foot">
        <a class="button" href="#/jobs">Not now</a>
        <button type="submit" class="button button-primary" disabled=${busy}>${busy ? "Asking…" : "Queue it"}</button>
      </footer>
    </form>
  </div>`;
}
