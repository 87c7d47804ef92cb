/** Curves, drawn by uPlot, with marks for what happened, and their figures in words for those who do not see them. */
import uPlot from "../vendor/uPlot.esm.js";
import { bytes, figure } from "../core/format.js";
import { html, useEffect, useId, useLayoutEffect, useRef, useState } from "../core/html.js";
import { chosen } from "../core/preferences.js";

const HEIGHT = 200;
const HUES = 6;
const DOUBLES = Array.from({ length: 50 }, (_, power) => 2 ** power); // steps of an axis of bytes

/** Returns a colour of the style sheet as the canvas needs it. */
function colour(box, name) {
  const probe = document.createElement("span");
  probe.className = `hue hue-${name}`;
  box.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** Draws vertical lines `{x, kind, label}` and rings `{x, y, series}`. */
function marking(marks, best, hues, scale) {
  return {
    hooks: {
      draw: [
        (plot) => {
          const { ctx, bbox } = plot;
          ctx.save();
          ctx.lineWidth = devicePixelRatio;
          for (const { x, kind } of marks) {
            const at = Math.round(plot.valToPos(x, "x", true)) + 0.5;
            if (at < bbox.left || at > bbox.left + bbox.width) continue;
            ctx.strokeStyle = hues[kind];
            ctx.setLineDash(kind === "pause" ? [] : [4 * devicePixelRatio, 4 * devicePixelRatio]);
            ctx.beginPath();
            ctx.moveTo(at, bbox.top);
            ctx.lineTo(at, bbox.top + bbox.height);
            ctx.stroke();
            if (kind !== "pause") continue;
            ctx.fillStyle = hues[kind];
            const unit = devicePixelRatio;
            ctx.fillRect(at - 4 * unit, bbox.top, 3 * unit, 8 * unit);
            ctx.fillRect(at + 1 * unit, bbox.top, 3 * unit, 8 * unit);
          }
          ctx.setLineDash([]);
          for (const { x, y } of best) {
            ctx.strokeStyle = hues.best;
            ctx.lineWidth = 2 * devicePixelRatio;
            ctx.beginPath();
            ctx.arc(plot.valToPos(x, "x", true), plot.valToPos(y, scale, true), 5 * devicePixelRatio, 0, 2 * Math.PI);
            ctx.stroke();
          }
          ctx.restore();
        },
      ],
    },
  };
}

/**
 * `x` are numbers (seconds since 1970 if `time`); each of `series` has `{label, values}` with null where there is none.
 *
 * `marks` are `{x, kind: pause | attempt, label}`, `best` are `{x, y, label}`. `format(value)` writes a value.
 */
export function Chart({
  title,
  x,
  series,
  marks = [],
  best = [],
  format = figure,
  time = false,
  unit = "epoch",
  range,
  log = false,
}) {
  const box = useRef(null);
  const plot = useRef(null);
  const heading = useId();
  const [theme, setTheme] = useState(0);
  const shape = JSON.stringify([
    series.map((each) => each.label),
    time,
    theme,
    log,
    marks.map((mark) => [mark.x, mark.kind]),
    best,
  ]);

  useEffect(() => {
    const again = () => setTheme((count) => count + 1);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", again);
    const end = chosen.listen(again);
    return () => {
      scheme.removeEventListener("change", again);
      end();
    };
  }, []);

  useLayoutEffect(() => {
    const place = box.current;
    const hues = Object.fromEntries(
      ["grid", "axis", "pause", "attempt", "best"].map((name) => [name, colour(place, name)]),
    );
    const font = `11px ${getComputedStyle(place).fontFamily}`;
    const axis = { stroke: hues.axis, font, grid: { stroke: hues.grid, width: 1 }, ticks: { show: false } };
    const few = x.length < 40;
    const made = new uPlot(
      {
        width: place.clientWidth,
        height: HEIGHT,
        legend: { show: false },
        cursor: { points: { size: 7 }, drag: { x: true, y: false } },
        scales: {
          x: { time, range: x.length === 1 ? () => [x[0] - 1, x[0] + 1] : undefined },
          y: log ? { distr: 3 } : { range },
        },
        axes: [
          {
            ...axis,
            size: 30,
            values: time ? moments : undefined,
            space: time ? 70 : 50,
            incrs: time
              ? undefined
              : [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 1e6],
            grid: { show: false },
          },
          {
            ...axis,
            size: 62,
            incrs: format === bytes ? DOUBLES : undefined,
            values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))),
          },
        ],
        series: [
          {},
          ...series.map((each, index) => ({
            label: each.label,
            stroke: colour(place, String(index % HUES)),
            width: 1.75,
            points: { show: few ? true : undefined, size: few ? 5 : 4 },
          })),
        ],
        plugins: [marking(marks, best, hues, "y")],
        hooks: { setCursor: [(at) => tell(at.cursor.idx)] },
      },
      columns(x, series, log),
      place,
    );
    plot.current = made;
    const observer = new ResizeObserver(() => made.setSize({ width: place.clientWidth, height: HEIGHT }));
    observer.observe(place);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape]);

  useLayoutEffect(() => plot.current?.setData(columns(x, series, log)), [x, series]);

  const [pointed, tell] = useState(null);
  const at = pointed ?? lastIndex(series);
  const where =
    at === null || at === undefined || x[at] === undefined
      ? ""
      : time
        ? new Date(x[at] * 1000).toLocaleTimeString("en-GB")
        : `${unit} ${x[at]}`;
  return html`<figure class="chart" aria-labelledby=${heading}>
    <figcaption>
      <h3 id=${heading}>${title}</h3>
      <span class="chart-where">${where}</span>
    </figcaption>
    <ul class="legend">
      ${series.map((each, index) => {
        const value = pointed === null ? newest(each.values) : each.values[at];
        return html`<li key=${each.label}><span
          class=${`swatch hue-${index % HUES}`}
          aria-hidden="true"
        ></span>${each.label === title ? "" : each.label}<strong>${value === null || value === undefined ? "–" : format(value)}</strong></li>`;
      })}
      ${best.map((each) => html`<li key="best" class="legend-best"><span class="ring" aria-hidden="true"></span>${each.label}</li>`)}
    </ul>
    <div
      class="chart-box"
      ref=${box}
      role="img"
      aria-label=${described(title, x, series, marks, format, time, unit)}
    ></div>
  </figure>`;
}

/** Writes moments of the time axis: hours and minutes, seconds where they are close, the day where it is another. */
function moments(_, ticks) {
  const close = ticks.length > 1 && ticks[1] - ticks[0] < 60;
  const far = ticks.length > 1 && ticks[ticks.length - 1] - ticks[0] > 86_400;
  const day = far ? { day: "numeric", month: "short" } : {};
  const options = { ...day, hour: "2-digit", minute: "2-digit", second: close ? "2-digit" : undefined };
  return ticks.map((tick) => new Date(tick * 1000).toLocaleString("en-GB", options));
}

/** Returns what is drawn; on a logarithmic axis, values above 0. */
function columns(x, series, log) {
  return [x, ...series.map(({ values }) => (log ? values.map((value) => (value > 0 ? value : null)) : values))];
}

function lastIndex(series) {
  return series.length && series[0].values.length ? series[0].values.length - 1 : null;
}

function newest(values) {
  for (let at = values.length - 1; at >= 0; at -= 1)
    if (values[at] !== null && values[at] !== undefined) return values[at];
  return null;
}

/** Says in words what a chart shows. */
function described(title, x, series, marks, format, time, unit) {
  const said = series.map(({ label, values }) => {
    const known = values.filter((value) => value !== null && Number.isFinite(value));
    if (!known.length) return `${label}: nothing told`;
    const least = known.reduce((a, b) => Math.min(a, b));
    const most = known.reduce((a, b) => Math.max(a, b));
    return `${label}: newest ${format(known[known.length - 1])}, from ${format(least)} to ${format(most)}`;
  });
  const span = x.length ? (time ? "" : `, ${unit} ${x[0]} to ${x[x.length - 1]}`) : "";
  const pauses = marks.filter((mark) => mark.kind === "pause").length;
  return `${title}${span}. ${said.join(". ")}.${pauses ? ` ${pauses} pauses.` : ""}`;
}
