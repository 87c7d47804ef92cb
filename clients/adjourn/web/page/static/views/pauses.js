/** Every pause of a job with its phases: how long each took, and where the time went. */
import { count, duration, moment, number, seconds, short, words } from "../core/format.js";
import { html } from "../core/html.js";
import { VERDICTS, phases } from "../core/phrases.js";
import { Empty, Facts, Section } from "../parts/basics.js";

export function Pauses({ job }) {
  const all = [...(job.pastPauses ?? []), ...(job.pause ? [job.pause] : [])];
  if (!all.length) return html`<${Empty} title="It was never paused" />`;
  const saved = all.reduce((sum, pause) => sum + (number(pause.savedGpuSeconds) ?? 0), 0);
  return html`<div class="stacked">
    ${saved > 0 && html`<p class="muted">GPU time that was not used while it rested: ${duration(saved)} in all.</p>`}
    ${all
      .map(
        (pause, at) => html`<${Cycle}
      key=${pause.requestTime ?? at}
      pause=${pause}
      number=${at + 1}
      gpus=${job.spec?.gpuCount ?? 0}
    />`,
      )
      .reverse()}
  </div>`;
}

function Cycle({ pause, number: at, gpus }) {
  const all = phases(pause);
  const known = all.filter(([, span]) => span !== null && span > 0);
  const work = known.filter(([label]) => label !== "At rest");
  const longest = Math.max(...work.map(([, span]) => span), 0.001);
  const title = `Pause ${at}${pause.pauseTime ? `, after ${pause.epoch ?? 0} epochs and ${count(pause.step ?? 0)} steps` : ""}`;
  const saved = number(pause.savedGpuSeconds);
  return html`<${Section} title=${title}>
    <table class="phases">
      <caption class="hidden">Phases of pause ${at}</caption>
      <thead class="hidden"><tr><th>Phase</th><th>Share</th><th>Duration</th></tr></thead>
      <tbody>
        ${all.map(
          ([label, span, meaning]) => html`<tr key=${label} class=${label === "At rest" ? "phase-rest" : ""}>
            <th scope="row" title=${meaning}>${label}</th>
            <td><span
              class="phase-bar"
              style=${{ width: span === null || label === "At rest" ? "0" : `${Math.max((100 * span) / longest, 0.5)}%` }}
            ></span></td>
            <td class="numbers">${span === null ? html`<span class="unknown">not reached</span>` : duration(span)}</td>
          </tr>`,
        )}
      </tbody>
    </table>
    <${Facts} rows=${[
      ["Asked for", `${moment(pause.requestTime)}${pause.actor ? ` by ${pause.actor}` : ""}`],
      ["Why", pause.reason || "no reason was given"],
      ["Cause", `${words(pause.cause ?? "not told").toLowerCase()}, mode ${(pause.mode ?? "EPOCH").toLowerCase()}`],
      [
        "Worker",
        pause.fromWorker ? `${short(pause.fromWorker)}${pause.toWorker ? ` → ${short(pause.toWorker)}` : ""}` : "",
      ],
      ["Checkpoint", short(pause.checkpoint)],
      ["Given up", pause.lostSteps ? `${count(pause.lostSteps)} steps, ${duration(seconds(pause.lostDuration))}` : ""],
      ["GPU time saved", gpus && saved ? duration(saved) : ""],
      [
        "Restored state",
        pause.verdict ? `${pause.verdict}${VERDICTS[pause.verdict] ? `: ${VERDICTS[pause.verdict]}` : ""}` : "",
      ],
      ["", (pause.verdictReasons ?? []).join("; ")],
      ["Note", pause.note ?? ""],
    ]} />
  </${Section}>`;
}
