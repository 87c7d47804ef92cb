/**
 * PURE. What a job has printed, as lines of coloured pieces.
 *
 * Colours are kept; carriage returns, erasures and steps up draw as on a terminal, so a progress bar is one line in its
 * last state. All other control sequences are left out. A style is a string of class names, never of CSS.
 */

const ROWS_MOST = 32; // lines that may still change, where bars are drawn below each other
const COLUMNS_MOST = 20000; // characters of a line that are shown
const TOKEN =
  /\x1b\[([0-?]*)[ -/]*([@-~])|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-OQ-WYZ\\`-~]|([^\x00-\x1f\x7f-\x9f]+)|([\s\S])/g;
const UNFINISHED = /\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]{0,4096}\x1b?|[ -/]*)$/;
const HUES = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];

export class LogText {
  constructor() {
    /** Lines that change no more: arrays of `[text, style]`. */
    this.lines = [];
    this._rows = [blank()];
    this._row = 0;
    this._column = 0;
    this._style = "";
    this._sgr = { bold: false, dim: false, hue: "" };
    this._rest = "";
  }

  /** Takes text in. */
  feed(text) {
    let data = this._rest + text;
    const open = UNFINISHED.exec(data);
    this._rest = open ? open[0] : "";
    if (open) data = data.slice(0, open.index);
    for (const [, parameters, letter, plain, single] of data.matchAll(TOKEN)) {
      if (plain !== undefined) this._write(plain);
      else if (letter !== undefined) this._control(parameters, letter);
      else if (single !== undefined) this._single(single);
    }
  }

  /** Returns how many lines there are, the ones that may still change included. */
  get length() {
    const last = this._rows[this._rows.length - 1];
    return this.lines.length + this._rows.length - (last.text.length ? 0 : 1);
  }

  /** Returns a line as pieces, `[text, style]`. */
  line(index) {
    return index < this.lines.length ? this.lines[index] : pieces(this._rows[index - this.lines.length]);
  }

  /** Drops the oldest lines beyond so many; returns how many. */
  trim(most) {
    const surplus = Math.max(this.lines.length - most, 0);
    if (surplus) this.lines.splice(0, surplus);
    return surplus;
  }

  _write(plain) {
    const row = this._rows[this._row];
    for (const letter of plain) {
      if (this._column >= COLUMNS_MOST) return;
      while (row.text.length < this._column) {
        row.text.push(" ");
        row.style.push("");
      }
      row.text[this._column] = letter;
      row.style[this._column] = this._style;
      this._column += 1;
    }
  }

  _single(letter) {
    if (letter === "\n") {
      this._row += 1;
      this._column = 0;
      if (this._row === this._rows.length) this._rows.push(blank());
      while (this._rows.length > ROWS_MOST) {
        this.lines.push(pieces(this._rows.shift()));
        this._row = Math.max(this._row - 1, 0);
      }
    } else if (letter === "\r") this._column = 0;
    else if (letter === "\b") this._column = Math.max(this._column - 1, 0);
    else if (letter === "\t") this._write(" ".repeat(8 - (this._column % 8)));
  }

  _control(parameters, letter) {
    const amount = Math.min(Number.parseInt(parameters, 10) || 0, COLUMNS_MOST);
    if (letter === "m") this._colour(parameters);
    else if (letter === "A") this._row = Math.max(this._row - Math.max(amount, 1), 0);
    else if (letter === "K") this._erase(amount);
  }

  _erase(which) {
    const row = this._rows[this._row];
    const until = which === 0 ? row.text.length : Math.min(this._column + 1, row.text.length);
    if (which === 0) {
      row.text.length = Math.min(row.text.length, this._column);
      row.style.length = row.text.length;
    } else if (which === 2) {
      row.text.length = 0;
      row.style.length = 0;
    } else {
      row.text.fill(" ", 0, until);
      row.style.fill("", 0, until);
    }
  }

  _colour(parameters) {
    const codes = parameters.split(/[;:]/).map((part) => Number.parseInt(part, 10) || 0);
    for (let at = 0; at < codes.length; at += 1) {
      const code = codes[at];
      if (code === 0) this._sgr = { bold: false, dim: false, hue: "" };
      else if (code === 1) this._sgr.bold = true;
      else if (code === 2) this._sgr.dim = true;
      else if (code === 22) this._sgr.bold = this._sgr.dim = false;
      else if (code >= 30 && code <= 37) this._sgr.hue = HUES[code - 30];
      else if (code >= 90 && code <= 97) this._sgr.hue = HUES[code - 90];
      else if (code === 39) this._sgr.hue = "";
      else if (code === 38 || code === 48) {
        const hue = codes[at + 1] === 5 ? ofPalette(codes[at + 2]) : nearest(codes.slice(at + 2, at + 5));
        if (code === 38) this._sgr.hue = hue;
        at += codes[at + 1] === 5 ? 2 : 4;
      }
    }
    const { bold, dim, hue } = this._sgr;
    this._style = [bold && "log-bold", dim && "log-dim", hue && `log-${hue}`].filter(Boolean).join(" ");
  }
}

function blank() {
  return { text: [], style: [] };
}

function pieces(row) {
  const found = [];
  let begin = 0;
  for (let at = 1; at <= row.text.length; at += 1) {
    if (at === row.text.length || row.style[at] !== row.style[begin]) {
      found.push([row.text.slice(begin, at).join(""), row.style[begin]]);
      begin = at;
    }
  }
  return found;
}

/** Returns the hue of a colour of the palette of 256. */
function ofPalette(index = 7) {
  if (index < 16) return HUES[index % 8];
  if (index > 231) return "white";
  const cube = index - 16;
  return nearest([Math.floor(cube / 36), Math.floor(cube / 6) % 6, cube % 6].map((part) => part * 51));
}

/** Returns the hue that is nearest to red, green and blue: those that are above half of the largest. */
function nearest(channels) {
  const [red = 0, green = 0, blue = 0] = channels;
  const half = Math.max(red, green, blue, 1) / 2;
  return HUES[(red > half ? 1 : 0) + (green > half ? 2 : 0) + (blue > half ? 4 : 0)];
}
