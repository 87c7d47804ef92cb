/** What a job has printed, followed as it is printed: colours kept, progress bars one line, everything else as text. */
import { follow, path } from "../core/api.js";
import { bytes, count, number } from "../core/format.js";
import { html, useEffect, useRef, useState } from "../core/html.js";
import { LogText } from "../core/log_text.js";
import { whileWanted } from "../core/presence.js";
import { Empty } from "../parts/basics.js";
import { VirtualList } from "../parts/virtual_list.js";

const TAIL = 2000;
const MOST = 100_000;
const LINE = 19;

/** The log of one attempt, or of the newest and those that follow. */
class Followed {
  constructor(draw) {
    this.draw = draw;
    /** `{attempt, text, left, end}` in order. */
    this.parts = [];
    this.failure = null;
    this._due = false;
  }

  take(message) {
    const attempt = message.attempt ?? 0;
    let part = this.parts[this.parts.length - 1];
    if (!part || part.attempt !== attempt) {
      part = { attempt, text: new LogText(), decoder: new TextDecoder(), left: 0, end: "", next: 0, dropped: 0 };
      this.parts.push(part);
    }
    const offset = number(message.offset) ?? 0;
    const data = Uint8Array.from(atob(message.data ?? ""), (letter) => letter.charCodeAt(0));
    const fresh = offset < part.next ? data.subarray(part.next - offset) : data; // a stream that came back repeats nothing
    part.left += number(message.leftOutBytes) ?? 0;
    part.text.feed(part.decoder.decode(fresh, { stream: true }));
    part.next = Math.max(part.next, number(message.nextOffset) ?? offset + data.length);
    part.dropped += part.text.trim(MOST);
    if (message.end) part.end = message.end;
    this.later();
  }

  later() {
    if (this._due) return;
    this._due = true;
    requestAnimationFrame(() => {
      this._due = false;
      this.draw((count) => count + 1);
    });
  }
}

/** Returns the lines of all attempts that are shown: pieces, or a heading. */
function linesOf(parts) {
  const starts = [];
  let length = 0;
  for (const part of parts) {
    starts.push(length);
    length += 1 + part.text.length;
  }
  return {
    length,
    at(index) {
      let which = starts.length - 1;
      while (starts[which] > index) which -= 1;
      const part = parts[which];
      return index === starts[which]
        ? { heading: headingOf(part) }
        : { pieces: part.text.line(index - starts[which] - 1) };
    },
  };
}

function headingOf({ attempt, left, dropped, end }) {
  const said = [`attempt ${attempt}`];
  if (left) said.push(`${bytes(left)} were left out, as a log has a limit`);
  if (dropped) said.push(`${count(dropped)} earlier lines are not shown`);
  if (end === "REST_MISSING") said.push("its worker has not stored the rest");
  return said.join(" · ");
}

export function Log({ job }) {
  const [, draw] = useState(0);
  const [from, setFrom] = useState({ attempt: 0, whole: false });
  const [sticking, setSticking] = useState(true);
  const [words, setWords] = useState("");
  const [live, setLive] = useState({ live: false, error: null });
  const log = useRef(null);
  useEffect(() => {
    return whileWanted((signal) => {
      const own = new Followed(draw);
      log.current = own;
      own.later();
      const first = from.attempt ? { attempt: from.attempt } : {};
      follow(path(job.name, ":streamLogs"), {
        query: { follow: "true", ...first, ...(from.whole ? {} : { tailLines: String(TAIL) }) },
        signal,
        onMessage: (message) => own.take(message),
        onState: setLive,
      });
    });
  }, [job.uid, from]);

  const parts = (log.current?.parts ?? []).filter((part) => !from.attempt || part.attempt === from.attempt);
  const lines = linesOf(parts);
  const wanted = words.toLowerCase();
  const found = [];
  if (wanted)
    for (let at = 0; at < lines.length; at += 1) {
      const { pieces } = lines.at(at);
      if (
        pieces &&
        pieces
          .map(([text]) => text)
          .join("")
          .toLowerCase()
          .includes(wanted)
      )
        found.push(at);
    }
  const length = wanted ? found.length : lines.length;
  const attempts = Array.from({ length: job.attempt ?? 0 }, (_, at) => at + 1).reverse();
  return html`<div class="log-view">
    <div class="toolbar">
      <label class="inline">Attempt
        <select
          value=${String(from.attempt)}
          onChange=${(event) => setFrom({ ...from, attempt: Number(event.target.value) })}
        >
          <option value="0">newest and next</option>
          ${attempts.map((each) => html`<option key=${each} value=${String(each)}>${each}</option>`)}
        </select></label>
      <label class="search search-small">
        <span class="hidden">Lines with</span>
        <input
          type="search"
          placeholder="Lines with…"
          value=${words}
          onInput=${(event) => setWords(event.target.value)}
        />
      </label>
      <label class="check"><input
        type="checkbox"
        checked=${from.whole}
        onChange=${(event) => setFrom({ ...from, whole: event.target.checked })}
      /><span>From its beginning</span></label>
      <label class="check"><input
        type="checkbox"
        checked=${sticking}
        onChange=${(event) => setSticking(event.target.checked)}
      /><span>Keep the end in sight</span></label>
      <p class="found" role="status">${wanted ? `${count(found.length)} of ${count(lines.length)} lines` : ""} ${live.error ? `not live: ${live.error.message}` : ""}</p>
    </div>
    ${
      !length
        ? html`<${Empty} title=${job.attempt ? (wanted ? "No line has that" : "Nothing is printed yet, as far as is stored") : "It has not begun"} />`
        : html`<${VirtualList} length=${length} height=${LINE} stick=${sticking} onStick=${setSticking} keys=${false} role="log" label="What the job has printed" className="log card"
          row=${(index) => html`<${Line} line=${lines.at(wanted ? found[index] : index)} />`} />`
    }
  </div>`;
}

function Line({ line }) {
  if (line.heading) return html`<div class="log-heading">${line.heading}</div>`;
  return html`<div class="log-line">${line.pieces.map(([text, style], at) => (style ? html`<span key=${at} class=${style}>${text}</span>` : text))}</div>`;
}
