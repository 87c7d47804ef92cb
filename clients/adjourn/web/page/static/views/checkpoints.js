/** The checkpoints of a job: why each is kept, and pins that keep them. */
import { call, path } from "../core/api.js";
import { bytes, count, duration, figure, moment, number, plural, seconds, short } from "../core/format.js";
import { html, useState } from "../core/html.js";
import { checkpointsOf, useAnswer } from "../core/queries.js";
import { Action, Empty, Notice } from "../parts/basics.js";
import { Question, announce, open } from "../parts/dialog.js";

function Unpin({ checkpoint, done, close }) {
  const act = async () => {
    await call("POST", path(checkpoint.name, ":unpin"), { body: {} });
    done();
    return `Checkpoint ${short(checkpoint.name)} is pinned no more`;
  };
  const others = (checkpoint.retainedFor ?? []).filter((each) => each !== "PINNED");
  return html`<${Question}
    title="Unpin this checkpoint?"
    verb="Unpin"
    kind="danger"
    act=${act}
    close=${close}
    otherwise="Keep it"
  >
    <p>
      ${others.length ? `It stays for as long as it is ${others.join(", ").toLowerCase()}.` : "Nothing else keeps it: it is removed for good."}
    </p>
  </${Question}>`;
}

export function Checkpoints({ job }) {
  const [asked, setAsked] = useState(0);
  const { value, error } = useAnswer(checkpointsOf(job.name), `${job.latestCheckpoint}/${job.state}/${asked}`, 500);
  if (!value)
    return error
      ? html`<${Notice} kind="bad" title="The checkpoints are not known">${error.message}</${Notice}>`
      : html`<${Empty} title="The checkpoints are being asked for" />`;
  if (!value.length) return html`<${Empty} title="No checkpoint is registered yet" />`;
  const done = () => setAsked(asked + 1);
  const pin = (checkpoint) =>
    call("POST", path(checkpoint.name, ":pin"), { body: {} }).then(
      () => {
        announce(`Checkpoint ${short(checkpoint.name)} is pinned`);
        done();
      },
      (failure) => announce(`It was not pinned: ${failure.message}`),
    );
  const sorted = [...value].sort(
    (a, b) => (b.step ?? 0) - (a.step ?? 0) || (b.createTime ?? "").localeCompare(a.createTime ?? ""),
  );
  return html`<div class="card scroll-x" tabindex="0" role="region" aria-label="Checkpoints">
    <table class="grid">
      <thead>
        <tr>
          <th>Checkpoint</th>
          <th class="numbers">Epoch</th>
          <th class="numbers">Step</th>
          <th class="numbers">Size</th>
          <th>Kept as</th>
          <th>Metrics</th>
          <th>Made</th>
          <th><span class="hidden">Actions</span></th>
        </tr>
      </thead>
      <tbody>
        ${sorted.map((each) => {
          const pinned = (each.retainedFor ?? []).includes("PINNED");
          const metrics = Object.entries(each.metrics ?? {}).sort();
          return html`<tr key=${each.name}>
            <td data-label="Checkpoint">
              <code title=${each.uri}>${short(each.name)}</code>
              ${each.damage && html`<p class="trouble">Damaged: ${each.damage}</p>`}
            </td>
            <td class="numbers" data-label="Epoch">${count(each.epoch ?? 0)}${each.epochStep ? html`<small class="muted"> + ${plural(each.epochStep, "step")}</small>` : ""}</td>
            <td class="numbers" data-label="Step">${count(each.step ?? 0)}</td>
            <td class="numbers" data-label="Size">
              ${bytes(number(each.sizeBytes ?? 0))}
              <small class="muted block">${bytes(number(each.uploadedBytes ?? 0))} sent</small>
            </td>
            <td data-label="Kept as">
              ${(each.retainedFor ?? []).map((why) => html`<span key=${why} class=${`tag ${why === "PINNED" ? "tag-strong" : ""}`}>${why.toLowerCase()}</span>`)}
            </td>
            <td class="metrics" data-label="Metrics">
              ${metrics.map(([name, figureOf]) => html`<span key=${name}>${name} <b>${figure(number(figureOf))}</b></span>`)}
            </td>
            <td data-label="Made">
              ${moment(each.createTime)}
              <small class="muted block">stood still ${duration(seconds(each.snapshotDuration))}</small>
            </td>
            <td data-label="Pin"><${Action}
              label=${pinned ? "Unpin" : "Pin"}
              icon="pin"
              compact=${true}
              kind=${pinned ? "on" : "quiet"}
              name=${`checkpoint ${short(each.name)}`}
              onClick=${() => (pinned ? open(Unpin, { checkpoint: each, done }) : pin(each))}
            /></td>
          </tr>`;
        })}
      </tbody>
    </table>
  </div>`;
}
