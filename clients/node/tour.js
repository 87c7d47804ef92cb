"use strict";
// Pauses a training and resumes it, by the contract in protos/ alone: create, watch, pause, wait, resume, wait.
//
//     npm ci && node tour.js 127.0.0.1:7400 [SPEC]
//
// SPEC: adjourn.v1.JobSpec as JSON. docs/integrating.md explains the parts that are marked as regions here.

const path = require("node:path");
const { randomUUID } = require("node:crypto");
const { setTimeout: sleep } = require("node:timers/promises");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const PROTOS = path.join(__dirname, "..", "..", "protos");
const SPEC = { entry_point: "adjourn.examples.digits:main", total_epochs: 12, seed: 7 };
const ENDED = new Set(["SUCCEEDED", "FAILED", "CANCELLED"]);

// region connect
const sources = ["adjourn/v1/job_service.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"];
const definition = loader.loadSync(sources, {
  includeDirs: [PROTOS, path.join(PROTOS, "third_party")],
  keepCase: true,
  enums: String,
  longs: String,
  defaults: true,
});
const retries = {
  maxAttempts: 5,
  initialBackoff: "0.1s",
  maxBackoff: "2s",
  backoffMultiplier: 2,
  retryableStatusCodes: ["UNAVAILABLE"],
};
const { JobService } = grpc.loadPackageDefinition(definition).adjourn.v1;
const client = new JobService(process.argv[2], grpc.credentials.createInsecure(), {
  "grpc.service_config": JSON.stringify({
    methodConfig: [{ name: [{ service: "adjourn.v1.JobService" }], retryPolicy: retries }],
  }),
  "grpc.keepalive_time_ms": 10_000, // a control plane that is gone without a word is noticed
});

function call(method, request, seconds = 10) {
  return new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + 1000 * seconds };
    client[method](request, options, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}
// endregion

// region errors
function details(error) {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  const found = bytes ? definition["google.rpc.Status"].deserialize(bytes).details : [];
  const kinds = found.map(({ type_url, value }) => [type_url.split("/").pop(), value]);
  return Object.fromEntries(kinds.map(([kind, value]) => [kind, definition[kind]?.deserialize(value)]));
}

function reason(error) {
  return details(error)["google.rpc.ErrorInfo"]?.reason ?? "";
}
// endregion

// region create
async function create(spec) {
  const request = { job: { spec, labels: { by: "node" } }, request_id: randomUUID() };
  const job = await call("CreateJob", request);
  const again = await call("CreateJob", request); // as if the first answer had been lost
  if (again.name !== job.name) throw new Error("there are two jobs");
  return job;
}
// endregion

// region watch
async function waitFor(name, reached) {
  const request = { names: [name], resume_token: "" };
  for (;;) {
    const stream = client.WatchJobs(request);
    stream.on("error", () => {}); // the loop below gets it too; this is for the one that follows from cancel()
    try {
      for await (const change of stream) {
        request.resume_token = change.resume_token || request.resume_token;
        if (change.deleted) throw new Error(`${name} was deleted`);
        if (!change.job) continue; // the stream lives
        if (reached(change.job)) return change.job;
        if (ENDED.has(change.job.state)) throw new Error(`${name} is ${change.job.state}: ${change.job.failure?.message}`);
      }
    } catch (error) {
      if (error.code !== grpc.status.UNAVAILABLE) throw error;
    } finally {
      stream.cancel();
    }
    await sleep(1000 * Math.random()); // many clients do not come back at once
  }
}
// endregion

// region etag
async function pause(name) {
  for (;;) {
    const { etag, state } = await call("GetJob", { name });
    if (ENDED.has(state)) throw new Error(`${name} is ${state}`);
    try {
      return await call("PauseJob", { name, mode: "EPOCH", reason: "the tour", etag, request_id: randomUUID() });
    } catch (error) {
      if (reason(error) !== "ETAG_STALE") throw error;
    }
  }
}
// endregion

// region pages
async function* events(parent) {
  let page_token = "";
  do {
    const page = await call("ListJobEvents", { parent, page_size: 5, page_token });
    yield* page.events;
    page_token = page.next_page_token;
  } while (page_token);
}
// endregion

// google.protobuf.Struct, which proto-loader does not make of plain objects. Its fields are in camelCase whatever keepCase.
function struct(given) {
  return { fields: Object.fromEntries(Object.entries(given).map(([name, value]) => [name, wrapped(value)])) };
}

function wrapped(value) {
  if (value === null) return { nullValue: 0 };
  if (Array.isArray(value)) return { listValue: { values: value.map(wrapped) } };
  if (typeof value === "object") return { structValue: struct(value) };
  return { [{ number: "numberValue", string: "stringValue", boolean: "boolValue" }[typeof value]]: value };
}

async function main() {
  const spec = process.argv[3] ? JSON.parse(process.argv[3]) : SPEC;
  const { name } = await create({ ...spec, args: struct(spec.args ?? {}) });
  console.log(`created ${name}`);
  await waitFor(name, (job) => job.state === "RUNNING");
  console.log("trains");
  await pause(name);
  const paused = await waitFor(name, (job) => job.state === "PAUSED");
  console.log(`paused after epoch ${paused.progress.epoch}: ${paused.latest_checkpoint}`);
  await call("ResumeJob", { name, request_id: randomUUID() });
  const ended = await waitFor(name, (job) => job.state === "SUCCEEDED");
  console.log(`ended after epoch ${ended.progress.epoch}, the resume was ${ended.pause.verdict}`);
  for await (const event of events(name)) console.log(`${event.sequence} ${event.type}`);
  try {
    await call("PauseJob", { name });
  } catch (error) {
    console.log(`a pause is refused now: ${reason(error)}`);
  }
  client.close();
}

main().catch((error) => {
  console.error(`${reason(error) || error.code || "failed"}: ${error.details || error.message}`);
  process.exitCode = 1;
});
