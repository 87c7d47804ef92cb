/** PURE. What a job does, what happens next, and which verbs would be refused: from Job to text. */
import { count, duration, millis, plural, seconds, short } from "./format.js";

export const STATES = [
  "QUEUED",
  "STARTING",
  "RUNNING",
  "PAUSING",
  "PAUSED",
  "CANCELLING",
  "CANCELLED",
  "SUCCEEDED",
  "FAILED",
];
export const ENDED = new Set(["CANCELLED", "SUCCEEDED", "FAILED"]);

/** Returns how far training has come; `told` is false while nobody has reported anything. */
export function progress(job) {
  const told = job.progress ?? {};
  const total = job.spec?.totalEpochs ?? 0;
  const epoch = told.epoch ?? 0;
  const within = told.stepsPerEpoch ? Math.min((told.epochStep ?? 0) / told.stepsPerEpoch, 1) : 0;
  return {
    told: Boolean(job.progress),
    epoch,
    total,
    step: told.step ?? 0,
    epochStep: told.epochStep ?? 0,
    stepsPerEpoch: told.stepsPerEpoch ?? null,
    within,
    share: total ? Math.min((epoch + within) / total, 1) : null,
  };
}

/** Returns a sentence on the state of a job. */
export function situation(job, now) {
  const { epoch, epochStep } = progress(job);
  const worker = short(job.worker);
  const resumable = job.latestCheckpoint ? "it can go on from its checkpoint" : "it has no checkpoint";
  switch (job.state) {
    case "QUEUED":
      return epoch || epochStep ? `Waits for a worker, to go on ${position(job)}` : "Waits for a worker";
    case "STARTING":
      return `${worker} loads code${epoch || epochStep ? ", data and checkpoint" : " and data"}`;
    case "RUNNING": {
      const left = seconds(job.progress?.remainingDuration);
      return `Trains on ${worker}${left === null ? "" : `, about ${duration(left)} of training left`}`;
    }
    case "PAUSING": {
      if (!job.pause?.boundaryTime && !job.pause?.releaseTime) return prediction(job, now);
      const share = job.pause.persistedFraction;
      return `Has stopped; its checkpoint is being made durable${share === undefined ? "" : `, ${Math.floor(share * 100)} % done`}`;
    }
    case "PAUSED":
      return `Rests ${position(job)}${unconfirmed(job) ? "" : ", on no worker"}${givenUp(job.pause, "gave")}`;
    case "CANCELLING":
      return job.pause && !job.pause.pauseTime && job.pause.predictedBoundaryTime
        ? "Is saved once more, then stopped for good"
        : "Is being stopped for good";
    case "CANCELLED":
      return `Was stopped ${position(job)}; ${resumable}`;
    case "SUCCEEDED":
      return job.spec?.totalEpochs ? `Trained to its end, ${plural(epoch, "epoch")}` : "Came to its end";
    case "FAILED":
      return `Gave up${job.failure?.reason ? ` (${job.failure.reason})` : ""}; ${resumable}`;
    default:
      return "Is in a state that this page does not know";
  }
}

/** Says how far training has come, in epochs and steps. */
export function position(job) {
  const { epoch, epochStep, stepsPerEpoch } = progress(job);
  if (epochStep)
    return `within epoch ${epoch + 1}, after ${count(epochStep)}${stepsPerEpoch ? ` of ${count(stepsPerEpoch)}` : ""} steps`;
  return epoch ? `after epoch ${epoch}` : "before its first epoch ended";
}

/** Says when a pausing job will pause, as the control plane has predicted it. */
export function prediction(job, now) {
  const { epoch, total } = progress(job);
  const pause = job.pause ?? {};
  const mode = pause.mode ?? "EPOCH";
  let said;
  if (mode === "LATEST")
    return `Is being stopped now${givenUp(pause, "and gives") || "; nothing is given up, as far as is known"}`;
  if (mode === "STEP") {
    said = "Will pause after the next step at which it can be cut";
  } else {
    const boundary = pause.boundaryEpoch ?? 0;
    if ((boundary || epoch + 1) >= total) return "Is in its last epoch: it will finish rather than pause";
    said = boundary ? `Will pause after epoch ${boundary}` : "Will pause at the next epoch boundary";
  }
  const left = ahead(pause.requestTime, pause.predictedBoundaryTime, now);
  if (left === null) return said;
  return left ? `${said}, in about ${duration(left)}` : `${said}, later than foreseen`;
}

/** Returns seconds left to a predicted moment; at most the predicted span, even if the local clock is wrong. */
export function ahead(asked, predicted, now) {
  if (!predicted) return null;
  const span = asked ? (millis(predicted) - millis(asked)) / 1000 : Infinity;
  return Math.max(Math.min((millis(predicted) - now) / 1000, span), 0);
}

/** Says what a pause costs, as a part of a sentence; empty if that is nothing. */
export function givenUp(pause, verb) {
  if (!pause?.lostSteps) return "";
  return `, ${verb} up ${plural(pause.lostSteps, "step")} (${duration(seconds(pause.lostDuration) ?? 0)} of training)`;
}

export function unconfirmed(job) {
  return (job.conditions ?? []).some((each) => each.type === "RELEASE_UNCONFIRMED");
}

/**
 * Returns what is known of a pause's safety: `saved` and `free` are true only when they were told.
 *
 * A job that was paused in the queue held nothing; one that had not started has nothing to save.
 */
export function safety(job) {
  const pause = job.pause ?? {};
  const idle = !pause.fromWorker;
  return {
    saved: Boolean(pause.checkpoint) && pause.checkpointVerified === true,
    nothingToSave: !job.latestCheckpoint && !pause.checkpoint,
    free: !unconfirmed(job) && (idle || Boolean(pause.releaseTime)),
    idle,
  };
}

/**
 * Returns when training is likely to reach its next boundary, before it is asked to: `{seconds, epoch, last}`.
 *
 * From the control plane's own estimate of what is left. `seconds` is null while there is nothing to judge by.
 */
export function nextBoundary(job) {
  const { epoch, total, within } = progress(job);
  const left = seconds(job.progress?.remainingDuration);
  const epochs = total - epoch - within;
  return {
    epoch: epoch + 1,
    last: total > 0 && epoch + 1 >= total,
    seconds: left === null || epochs <= 0 ? null : (left / epochs) * (1 - within),
  };
}

const VERBS = {
  pause(job) {
    if (ENDED.has(job.state)) return `It has ended (${job.state})`;
    if (job.state === "CANCELLING") return "It is being cancelled";
    if (!job.spec?.totalEpochs) return "It is a task without epochs: it can be cancelled, not paused";
    if (job.state === "PAUSED") return "It is paused";
    return "";
  },
  resume(job) {
    const holds = job.holds ?? [];
    if (job.state === "SUCCEEDED") return "It has trained to its end";
    if (job.state === "CANCELLING") return "It is being cancelled";
    if (job.state === "CANCELLED" || job.state === "FAILED")
      return job.latestCheckpoint ? "" : "It has no checkpoint to go on from";
    if (!["PAUSED", "PAUSING"].includes(job.state)) return "It is not paused";
    if (!holds.some((hold) => hold.kind === "USER")) {
      return holds.some((hold) => hold.kind === "OPERATOR")
        ? "An operator holds it, who releases it"
        : "It goes on by itself";
    }
    return "";
  },
  release(job) {
    return (job.holds ?? []).some((hold) => hold.kind === "OPERATOR") ? "" : "No operator holds it";
  },
  cancel(job) {
    if (ENDED.has(job.state)) return `It has ended (${job.state})`;
    return "";
  },
  delete(job) {
    return ENDED.has(job.state) ? "" : "It has not ended: cancel it first";
  },
};

/** Returns why a verb would be refused for a job, in words; empty if it would not be. */
export function refusal(verb, job) {
  return VERBS[verb](job);
}

/** Returns what a verdict on a restored state means. */
export const VERDICTS = {
  EXACT: "every digest is equal",
  EXACT_REPLAYED: "every digest is equal, and a drill came to the same bits",
  WITHIN_TOLERANCE: "every digest is equal, the environment is another",
  UNPROVEN: "every digest is equal, but not everything is in one",
};

/** Returns the phases of a pause with their seconds; null for those that were not reached. */
export function phases(pause) {
  const span = (start, end) => (start && end ? (millis(end) - millis(start)) / 1000 : null);
  return [
    ["To the boundary", span(pause.requestTime, pause.boundaryTime), "from the request until training stopped"],
    ["Snapshot", span(pause.boundaryTime, pause.snapshotTime), "until the state was copied"],
    ["Freed", span(pause.snapshotTime, pause.releaseTime), "until the process was gone and its GPU memory free"],
    ["Durable", span(pause.releaseTime, pause.pauseTime), "until the checkpoint was registered"],
    ["At rest", span(pause.pauseTime, pause.resumeRequestTime), "until somebody asked to go on"],
    ["Restart", span(pause.resumeRequestTime, pause.resumeTime), "until the first step afterwards"],
  ];
}
