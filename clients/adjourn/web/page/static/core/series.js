/** PURE. What a job has told of itself, as columns for curves. */
import { millis, number } from "./format.js";

const GROUPS = [
  ["Loss", /(^|[_/.-])loss$|^loss/],
  ["Accuracy", /acc(uracy)?$|^acc/],
];

/** Returns metrics in groups that share an axis: `[[title, [name...]], ...]`; losses first, others alone, by name. */
export function grouped(names) {
  const rest = new Set([...names].sort());
  const found = [];
  for (const [title, pattern] of GROUPS) {
    const mine = [...rest].filter((name) => pattern.test(name.toLowerCase()));
    mine.forEach((name) => rest.delete(name));
    if (mine.length) found.push([mine.length > 1 ? title : mine[0], mine]);
  }
  return [...found, ...[...rest].map((name) => [name, [name]])];
}

/** Returns a value that can be drawn; null for one that is unset or not finite. */
function drawable(value) {
  const found = number(value);
  return Number.isFinite(found) ? found : null;
}

/** Returns one column for each metric of epochs: `{x, columns: Map(name, values)}`. */
export function ofEpochs(epochs) {
  const names = new Set(epochs.flatMap((each) => Object.keys(each.values ?? {})));
  return {
    x: epochs.map((each) => each.epoch),
    columns: new Map([...names].map((name) => [name, epochs.map((each) => drawable(each.values?.[name]))])),
  };
}

/** The same of steps; the loss comes first. */
export function ofSteps(steps) {
  const names = new Set(steps.flatMap((each) => Object.keys(each.values ?? {})));
  const columns = new Map();
  if (steps.some((each) => each.loss !== undefined))
    columns.set(
      "loss",
      steps.map((each) => drawable(each.loss)),
    );
  for (const name of names)
    if (name !== "loss" || !columns.has("loss"))
      columns.set(
        name,
        steps.map((each) => drawable(each.values?.[name])),
      );
  return { x: steps.map((each) => each.step ?? 0), columns };
}

/** Returns where attempts began and pauses were, in epochs or steps. */
export function marksOf(job, points, place) {
  const marks = [];
  for (let at = 1; at < points.length; at += 1) {
    const { attempt } = points[at];
    if (attempt !== points[at - 1].attempt)
      marks.push({ x: (points[at][place] + points[at - 1][place]) / 2, kind: "attempt", label: `attempt ${attempt}` });
  }
  for (const pause of [...(job.pastPauses ?? []), ...(job.pause ? [job.pause] : [])]) {
    if (pause.pauseTime && (pause.epoch || pause.step))
      marks.push({ x: pause[place] ?? 0, kind: "pause", label: `paused after ${place} ${pause[place] ?? 0}` });
  }
  return marks;
}

/** Returns samples as columns over seconds since 1970, with a gap wherever nobody looked. */
export function ofSamples(samples) {
  const x = [];
  const kept = [];
  let last = null;
  const steps = samples
    .slice(1)
    .map((each, at) => millis(each.time) - millis(samples[at].time))
    .sort((a, b) => a - b);
  const usual = steps.length ? steps[Math.floor((steps.length - 1) / 2)] : 5000;
  for (const sample of samples) {
    const time = millis(sample.time) / 1000;
    if (last !== null && (time - last.time) * 1000 > Math.max(4 * usual, 20_000)) {
      x.push(last.time + 0.001);
      kept.push(null);
    }
    if (last !== null && time <= last.time) continue;
    x.push(time);
    kept.push(sample);
    last = { time };
  }
  const column = (pick) => kept.map((sample) => (sample ? drawable(pick(sample)) : null));
  const gpus = [...new Set(samples.flatMap((sample) => (sample.gpus ?? []).map((gpu) => gpu.index ?? 0)))].sort(
    (a, b) => a - b,
  );
  const gpu = (sample, index) => (sample.gpus ?? []).find((each) => (each.index ?? 0) === index) ?? {};
  return { x, column, gpus, gpu };
}

/** Returns a share in percent; null if one of both is not told. */
export function share(used, all) {
  const [part, whole] = [number(used), number(all)];
  return part === null || !whole ? null : (100 * part) / whole;
}

/** Returns the mean of what is told; null if nothing is. */
export function mean(values) {
  const told = values.map(number).filter((value) => value !== null);
  return told.length ? told.reduce((a, b) => a + b, 0) / told.length : null;
}
