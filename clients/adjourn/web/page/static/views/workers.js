/** The workers: what each has, holds and is told, and orders to become empty. */
import { all, call, path } from "../core/api.js";
import { ago, bytes, number, pairs, plural, short } from "../core/format.js";
import { useNow } from "../core/clock.js";
import { html, useEffect, useState } from "../core/html.js";
import { jobs } from "../core/jobs.js";
import { useAnswer } from "../core/queries.js";
import { jobPath } from "../core/router.js";
import { useSignal } from "../core/signal.js";
import { Action, Badge, Empty, Notice } from "../parts/basics.js";
import { Question, Reason, open } from "../parts/dialog.js";

const EVERY = 2000;

function Drain({ worker, done, close }) {
  const [reason, setReason] = useState("");
  const held = (worker.jobs ?? []).length;
  const act = async () => {
    await call("POST", path(worker.name, ":drain"), { body: { reason } });
    done();
    return `${short(worker.name)} is drained: it takes nothing new`;
  };
  return html`<${Question} title=${`Drain ${short(worker.name)}?`} verb="Drain" act=${act} close=${close}>
    <p>It takes nothing new. ${held ? `Its ${plural(held, "job")} ${held === 1 ? "pauses" : "pause"} at the next boundary and ${held === 1 ? "goes" : "go"} on elsewhere, at no cost.` : "It holds no job."}</p>
    <${Reason} value=${reason} onChange=${setReason} />
  </${Question}>`;
}

function Undrain({ worker, done, close }) {
  const act = async () => {
    await call("POST", path(worker.name, ":undrain"), { body: {} });
    done();
    return `${short(worker.name)} takes jobs again`;
  };
  return html`<${Question}
    title=${`Have ${short(worker.name)} take jobs again?`}
    verb="Take jobs"
    act=${act}
    close=${close}
  >
    <p>Jobs that have not left yet train on there.</p>
  </${Question}>`;
}

export function Workers() {
  const state = useSignal(jobs);
  const now = useNow();
  const [asked, setAsked] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => document.hidden || setAsked((count) => count + 1), EVERY);
    return () => clearInterval(timer);
  }, []);
  const { value, error } = useAnswer((signal) => all("v1/workers", "workers", { signal }), `${asked}/${state.live}`);
  const done = () => setAsked((count) => count + 1);
  return html`<div class="view">
    <header class="view-head"><h1>Workers</h1></header>
    ${error && html`<${Notice} kind="warn" title="What is shown may be old">${error.message}</${Notice}>`}
    ${
      !value
        ? !error && html`<${Empty} title="The workers are being asked for" />`
        : !value.length
          ? html`<${Empty} title="There is no worker">Jobs wait until one connects.</${Empty}>`
          : html`<ul class="cards">${value.map(
              (worker) => html`<${Card}
            key=${worker.name}
            worker=${worker}
            now=${now}
            live=${state.live && !error}
            done=${done}
          />`,
            )}</ul>`
    }
  </div>`;
}

function Card({ worker, now, live, done }) {
  const held = worker.jobs ?? [];
  const devices = worker.devices ?? [];
  const drained = Boolean(worker.drain);
  const stale = live ? "" : "What is shown may be old: the page is not live";
  return html`<li class="card worker-card">
    <header>
      <div class="stack">
        <h2>${short(worker.name)}</h2>
        <small class="muted clip">${worker.labels ? pairs(worker.labels) : "no labels"}</small>
      </div>
      <${Badge} state=${worker.state} />
    </header>
    ${(worker.conditions ?? []).map(
      (each) => html`<${Notice}
      key=${each.type}
      kind="warn"
      title=${each.reason || each.type}
    >${each.message}</${Notice}>`,
    )}
    ${
      drained &&
      html`<${Notice}
      kind="note"
      title=${`To become empty${worker.drain.actor ? `, by ${worker.drain.actor}` : ""}`}
    >${worker.drain.reason || "No reason was given."}</${Notice}>`
    }
    <dl class="facts">
      <div>
        <dt>Jobs</dt>
        <dd>
          ${held.length ? html`<ul class="plain">${held.map((name) => html`<li key=${name}><a href=${jobPath(name)}>${short(name)}</a></li>`)}</ul>` : "none"}
        </dd>
      </div>
      <div>
        <dt>GPUs</dt>
        <dd>
          ${devices.length ? html`<ul class="plain">${devices.map((gpu) => html`<li key=${gpu.uuid}>${gpu.index ?? 0}: ${gpu.model || "model not told"}, ${bytes(number(gpu.memoryBytes ?? null))}${gpu.quarantined && html` <span class="trouble">quarantined</span>`}</li>`)}</ul>` : "none"}
        </dd>
      </div>
      <div><dt>CPU slots</dt><dd>${worker.cpuSlots ?? 0}</dd></div>
      <div><dt>Heard</dt><dd class="numbers">${ago(worker.reportTime, now)}</dd></div>
      <div><dt>Agent</dt><dd>${worker.agentVersion || html`<span class="unknown">not told</span>`}</dd></div>
    </dl>
    ${
      worker.environment &&
      html`<details class="environment"><summary>What the bits of a training on it depend on</summary><dl class="facts">
      ${Object.keys(worker.environment)
        .sort()
        .map((key) => html`<div key=${key}><dt>${key}</dt><dd>${worker.environment[key]}</dd></div>`)}
    </dl></details>`
    }
    <footer><${Action}
      label="Drain"
      why=${stale || (drained ? "It is drained already" : "")}
      onClick=${() => open(Drain, { worker, done })}
    />
      <${Action}
        label="Take jobs again"
        why=${stale || (drained ? "" : "It was not told to become empty")}
        onClick=${() => open(Undrain, { worker, done })}
      /></footer>
  </li>`;
}
