/** What happened to a job, newest first: the history, then each event as it comes. */
import { all, follow, path } from "../core/api.js";
import { clock, moment, short, words } from "../core/format.js";
import { html, useEffect, useState } from "../core/html.js";
import { whileWanted } from "../core/presence.js";
import { Empty, Notice } from "../parts/basics.js";

const GRAVE = new Set(["FAILED", "FELL_BACK", "LOSS_NOT_FINITE", "GRADIENTS_EXPLODED"]);
const RAISED = new Set(["CONDITION_BEGAN", "LOSS_JUMPED", "GPU_MEMORY_NEARLY_FULL", "REQUEUED", "CANCELLED"]);
const GOOD = new Set(["SUCCEEDED", "MILESTONE_REACHED", "PAUSED"]);
const SHOWN = 300;
const AGAIN_MILLIS = 3000;

/** Returns the events of a job by sequence; each once, whether it was listed or streamed. */
function useEvents(job) {
  const [state, setState] = useState({ bySequence: new Map(), listed: false, error: null });
  useEffect(() => {
    const bySequence = new Map();
    const add = (events, more = {}) => {
      for (const event of events) bySequence.set(event.sequence, event);
      setState((old) => ({ ...old, ...more, bySequence }));
    };
    const list = (signal) =>
      all(path(job.name, "/events"), "events", { signal }).then(
        (events) => add(events, { listed: true, error: null }),
        (error) => {
          if (signal.aborted) return;
          setState((old) => ({ ...old, error }));
          setTimeout(() => signal.aborted || list(signal), AGAIN_MILLIS);
        },
      );
    return whileWanted((signal) =>
      follow("v1/jobs:watchEvents", {
        query: { names: job.name },
        signal,
        onMessage(message) {
          if (message.event) add(message.jobUid === job.uid ? [message.event] : []);
          if (!message.event || message.gap) list(signal); // from here on nothing is left out; before it, the list has it
        },
        onState: ({ error }) => error && setState((old) => ({ ...old, error })),
      }),
    );
  }, [job.uid]);
  return state;
}

export function Events({ job }) {
  const { bySequence, listed, error } = useEvents(job);
  const [more, setMore] = useState(SHOWN);
  if (!listed)
    return error
      ? html`<${Notice} kind="bad" title="What happened is not known">${error.message}</${Notice}>`
      : html`<${Empty} title="The events are being asked for" />`;
  const events = [...bySequence.values()].sort((a, b) => b.sequence - a.sequence);
  let day = "";
  return html`<div class="card">
    <ol class="events" reversed>
      ${events.slice(0, more).map((event) => {
        const date = moment(event.time).split(",")[0];
        const heading = date !== day && html`<li class="day" key=${`day ${date}`} aria-hidden="true">${date}</li>`;
        day = date;
        return html`${heading}<${Event} key=${event.sequence} event=${event} />`;
      })}
    </ol>
    ${
      events.length > more &&
      html`<button
      type="button"
      class="button"
      onClick=${() => setMore(more + 1000)}
    >Show older ones</button>`
    }
  </div>`;
}

function Event({ event }) {
  const tone = GRAVE.has(event.type)
    ? "bad"
    : RAISED.has(event.type)
      ? "warn"
      : GOOD.has(event.type)
        ? "good"
        : "plain";
  const details = Object.entries(event.details ?? {}).filter(([key]) => key !== "holds");
  return html`<li class="event">
    <time datetime=${event.time} title=${event.time}>${clock(event.time)}</time>
    <span class=${`dot dot-${tone}`} aria-hidden="true"></span>
    <div>
      <strong>${words(event.type)}</strong>
      ${event.attempt ? html`<span class="muted"> attempt ${event.attempt}</span>` : ""}
      ${event.actor && html`<span class="muted"> by ${short(event.actor)}</span>`}
      ${event.message && html`<p class="pre">${event.message}</p>`}
      ${details.length > 0 && html`<p class="muted details">${details.map(([key, value]) => html`<span key=${key}>${key} <b>${value}</b></span>`)}</p>`}
    </div>
  </li>`;
}
