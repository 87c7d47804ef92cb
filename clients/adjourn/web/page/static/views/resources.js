/** What a job and its worker use: now as bars, over time as curves. What a machine cannot tell is not told. */
import { ago, bytes, number, percent } from "../core/format.js";
import { useNow } from "../core/clock.js";
import { html, useMemo } from "../core/html.js";
import { progress } from "../core/phrases.js";
import { samplesOf, useAnswer } from "../core/queries.js";
import { mean, ofSamples, share } from "../core/series.js";
import { Empty, Notice, Section, UsageBar } from "../parts/basics.js";
import { Chart } from "../parts/chart.js";

/** One sample as bars. */
export function Usage({ sample }) {
  const gpus = sample.gpus ?? [];
  const used = (gpu) => share(gpu.memoryUsedBytes, gpu.memoryTotalBytes);
  const memory = number(sample.workerMemoryBytes);
  const of = number(sample.workerMemoryLimitBytes);
  return html`<div class="usages">
    ${gpus.map(
      (gpu) => html`<fieldset class="usage-group" key=${gpu.index ?? 0}>
        <legend>GPU ${gpu.index ?? 0}</legend>
        <${UsageBar} label="Utilization" share=${number(gpu.utilizationPercent)} />
        <${UsageBar}
          label="Memory"
          share=${used(gpu)}
          detail=${gpu.memoryUsedBytes === undefined ? "" : `${bytes(number(gpu.memoryUsedBytes))} of ${bytes(number(gpu.memoryTotalBytes))}`}
        />
        <p class="muted numbers">${[
          gpu.jobMemoryBytes === undefined ? "" : `${bytes(number(gpu.jobMemoryBytes))} by the job`,
          gpu.temperatureCelsius === undefined ? "" : `${Math.round(gpu.temperatureCelsius)} °C`,
          gpu.powerWatts === undefined ? "" : `${Math.round(gpu.powerWatts)} W`,
        ]
          .filter(Boolean)
          .join(" · ")}</p>
      </fieldset>`,
    )}
    ${
      gpus.length > 1 &&
      html`<fieldset class="usage-group"><legend>Mean of ${gpus.length} GPUs</legend>
      <${UsageBar} label="Utilization" share=${mean(gpus.map((gpu) => gpu.utilizationPercent))} />
      <${UsageBar} label="Memory" share=${mean(gpus.map(used))} /></fieldset>`
    }
    <fieldset class="usage-group">
      <legend>Worker</legend>
      <${UsageBar}
        label="CPU"
        share=${number(sample.workerCpuPercent)}
        detail=${sample.cpuPercent === undefined ? "" : `the job: ${percent(sample.cpuPercent)} of a core`}
      />
      <${UsageBar}
        label="Memory"
        share=${share(sample.workerMemoryBytes, sample.workerMemoryLimitBytes)}
        detail=${memory === null ? "" : `${bytes(memory)}${of ? ` of ${bytes(of)}` : ""}`}
      />
      <p class="muted numbers">
        ${sample.memoryBytes === undefined ? "" : `${bytes(number(sample.memoryBytes))} by the job`}
      </p>
    </fieldset>
    ${
      sample.hostCpuPercent !== undefined || sample.hostMemoryBytes !== undefined
        ? html`<fieldset class="usage-group">
      <legend>Its machine</legend>
      <${UsageBar} label="CPU" share=${number(sample.hostCpuPercent)} />
      <${UsageBar}
        label="Memory"
        share=${share(sample.hostMemoryBytes, sample.hostMemoryTotalBytes)}
        detail=${sample.hostMemoryBytes === undefined ? "" : bytes(number(sample.hostMemoryBytes))}
      />
    </fieldset>`
        : ""
    }
    ${!gpus.length && html`<p class="muted">The job has no GPU.</p>`}
  </div>`;
}

export function Resources({ job }) {
  const now = useNow();
  const { value, error } = useAnswer(
    (signal) => samplesOf(job.name, signal),
    `${job.attempt}/${progress(job).step}/${job.state}`,
    4000,
  );
  const charts = useMemo(() => (value?.length ? curves(value) : []), [value]);
  if (!value)
    return error
      ? html`<${Notice} kind="bad" title="What it uses is not known">${error.message}</${Notice}>`
      : html`<${Empty} title="The samples are being asked for" />`;
  if (!value.length)
    return html`<${Empty} title="No sample was told yet">They are taken every 5 s while a training process is there.</${Empty}>`;
  const newest = value[value.length - 1];
  return html`<div class="stacked">
    <${Section} title=${`${job.worker ? "Used" : "Used last"}, ${ago(newest.time, now)}`}>
      <${Usage} sample=${newest} />
    </${Section}>
    <${Section} title="Over time">
      <div class="charts">${charts.map((each) => html`<${Chart} key=${each.title} time=${true} ...${each} />`)}</div>
    </${Section}>
  </div>`;
}

const SHARES = (_, low, high) => [0, Math.max(100, high ?? 100)];
const FROM_ZERO = (_, low, high) => [0, (high || 1) * 1.1];

function curves(samples) {
  const { x, column, gpus, gpu } = ofSamples(samples);
  const told = (charts) =>
    charts
      .map((each) => ({ ...each, series: each.series.filter(({ values }) => values.some((value) => value !== null)) }))
      .filter((each) => each.series.length);
  return told([
    {
      title: "GPU utilization",
      x,
      format: percent,
      range: SHARES,
      series: gpus.map((at) => ({
        label: `GPU ${at}`,
        values: column((sample) => gpu(sample, at).utilizationPercent),
      })),
    },
    {
      title: "GPU memory",
      x,
      format: bytes,
      range: FROM_ZERO,
      series: gpus.map((at) => ({ label: `GPU ${at}`, values: column((sample) => gpu(sample, at).memoryUsedBytes) })),
    },
    {
      title: "CPU of the worker",
      x,
      format: percent,
      range: SHARES,
      series: [{ label: "all that it may use", values: column((sample) => sample.workerCpuPercent) }],
    },
    {
      title: "CPU of the job",
      x,
      format: percent,
      range: FROM_ZERO,
      series: [{ label: "100 % is one core", values: column((sample) => sample.cpuPercent) }],
    },
    {
      title: "Memory",
      x,
      format: bytes,
      range: FROM_ZERO,
      series: [
        { label: "job", values: column((sample) => sample.memoryBytes) },
        { label: "worker", values: column((sample) => sample.workerMemoryBytes) },
      ],
    },
    {
      title: "GPU temperature",
      x,
      format: (value) => `${Math.round(value)} °C`,
      series: gpus.map((at) => ({
        label: `GPU ${at}`,
        values: column((sample) => gpu(sample, at).temperatureCelsius),
      })),
    },
  ]);
}
