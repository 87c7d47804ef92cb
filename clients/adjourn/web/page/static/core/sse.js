/** PURE. Server-sent events out of a stream of text (the standard's parsing, for what fetch reads). */

export class Parser {
  constructor() {
    this._rest = "";
    this._data = [];
    this._event = "";
    this._id = "";
    /** Identity of the last event that was whole, which the server goes on after. */
    this.lastId = "";
  }

  /** Returns the events that are complete: `{event, data, id}`. */
  feed(text) {
    const lines = (this._rest + text).split(/\r\n|\n|\r(?!$)/);
    this._rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") {
        this.lastId = this._id;
        if (this._data.length)
          events.push({ event: this._event || "message", data: this._data.join("\n"), id: this.lastId });
        this._data = [];
        this._event = "";
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) continue; // a comment: something was heard, nothing was said
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "data") this._data.push(value);
      else if (field === "event") this._event = value;
      else if (field === "id") this._id = value;
    }
    return events;
  }

  /** Forgets what was begun: the stream broke. */
  reset() {
    this._rest = "";
    this._data = [];
    this._event = "";
    this._id = this.lastId;
  }
}
