import assert from "node:assert/strict";
import { test } from "node:test";
import { ago, bytes, duration, figure, level, pairs } from "../../../clients/adjourn/web/page/static/core/format.js";
import { Listing } from "../../../clients/adjourn/web/page/static/core/listing.js";
import { LogText } from "../../../clients/adjourn/web/page/static/core/log_text.js";
import { ahead, nextBoundary, phases, prediction, refusal, safety, situation } from "../../../clients/adjourn/web/page/static/core/phrases.js";
import { grouped, marksOf, ofEpochs, ofSamples, share } from "../../../clients/adjourn/web/page/static/core/series.js";
import { Parser } from "../../../clients/adjourn/web/page/static/core/sse.js";

test("what is not told is said to be so, and nothing is not", () => {
  for (const write of [duration, bytes, figure]) assert.equal(write(null), "not told");
  assert.deepEqual([duration(0), bytes(0), figure(0)], ["0 ms", "0 B", "0"]);
  assert.equal(ago(undefined, 0), "not told");
});

test("durations, sizes and figures are written as the command line writes them", () => {
  assert.deepEqual([0.85, 4.2, 47, 192, 7500, 273_600].map(duration), ["850 ms", "4.2 s", "47 s", "3 min 12 s", "2 h 05 min", "3 d 4 h"]);
  assert.deepEqual([512, 4300, 1.4e9].map(bytes), ["512 B", "4.2 KiB", "1.3 GiB"]);
  assert.deepEqual([0.123456, 3e-5, 12345678, NaN].map(figure), ["0.12346", "3.000e-5", "1.235e+7", "NaN"]);
  assert.deepEqual([null, 70, 71, 90, 91].map(level), ["none", "normal", "raised", "raised", "high"]);
  assert.equal(pairs({ b: 1, a: "x" }), "a=x, b=1");
});

test("a watch is a list, then changes; a list that breaks off counts for nothing", () => {
  const state = { byName: new Map(), listed: false };
  const listing = new Listing(state);
  const names = () => [...state.byName.keys()];
  listing.take({ job: { name: "a" } });
  assert.equal(state.listed, false);
  listing.begin(); // the connection broke within the list
  listing.take({ job: { name: "b" } });
  listing.take({ resumeToken: "1" });
  assert.deepEqual([state.listed, names()], [true, ["b"]]);
  listing.take({ job: { name: "c" }, resumeToken: "2" });
  listing.take({ deleted: "b", resumeToken: "3" });
  assert.deepEqual(names(), ["c"]);
  listing.begin(); // resumed: changes alone
  listing.take({ job: { name: "d" }, resumeToken: "4" });
  assert.deepEqual(names(), ["c", "d"]);
  listing.take({}); // the token was too old: the list begins anew
  listing.take({ job: { name: "e" } });
  assert.deepEqual(names(), ["c", "d"]);
  listing.take({ resumeToken: "5" });
  assert.deepEqual(names(), ["e"]);
});

test("a watch of no jobs is listed", () => {
  const state = { byName: new Map(), listed: false };
  new Listing(state).take({ resumeToken: "1" });
  assert.equal(state.listed, true);
});

test("server-sent events are read in any pieces", () => {
  const text = 'retry: 1000\n\n: still here\n\nid: 7\ndata: {"a": 1}\n\nid\ndata: x\ndata: y\n\nevent: error\ndata: z\n\n';
  for (const size of [1, 3, text.length]) {
    const parser = new Parser();
    const found = [];
    for (let at = 0; at < text.length; at += size) found.push(...parser.feed(text.slice(at, at + size)));
    assert.deepEqual(found, [
      { event: "message", data: '{"a": 1}', id: "7" },
      { event: "message", data: "x\ny", id: "" },
      { event: "error", data: "z", id: "" },
    ]);
  }
});

test("an event that was not whole is not gone on after", () => {
  const parser = new Parser();
  parser.feed("id: 1\ndata: a\n\nid: 2\ndata: b\n");
  parser.reset(); // the connection broke
  assert.equal(parser.lastId, "1");
  parser.feed("data: c\n\n");
  assert.equal(parser.lastId, "1");
});

function logged(...pieces) {
  const log = new LogText();
  for (const piece of pieces) log.feed(piece);
  return Array.from({ length: log.length }, (_, at) => log.line(at));
}
const plain = (lines) => lines.map((line) => line.map(([text]) => text).join(""));

test("a log is drawn as on a terminal", () => {
  assert.deepEqual(plain(logged("1 %\r50 %\r100 %\nnext")), ["100 %", "next"]);
  assert.deepEqual(plain(logged("abc\r\x1b[Kd\n", "one\ntwo\x1b[A\rONE\n\n")), ["d", "ONE", "two"]);
  assert.deepEqual(plain(logged("a\x1b", "[31", "mb\x1b[0m\x1b]0;title\x07c\x1b[2J\x00d")), ["abcd"]);
  assert.deepEqual(logged("\x1b[1;31mred\x1b[0m \x1b[38;5;46mgreen\x1b[38;2;0;0;255mblue"), [
    [["red", "log-bold log-red"], [" ", ""], ["green", "log-green"], ["blue", "log-blue"]],
  ]);
});

test("a log keeps so many lines, and forgets the oldest", () => {
  const log = new LogText();
  log.feed(Array.from({ length: 500 }, (_, at) => `line ${at}\n`).join(""));
  assert.equal(log.length, 500);
  assert.ok(log.trim(100) > 300);
  assert.deepEqual(log.line(log.length - 1), [["line 499", ""]]);
});

const job = (state, more = {}) => ({ name: "jobs/a", state, spec: { totalEpochs: 10 }, progress: { epoch: 3, step: 30 }, ...more });

test("verbs are refused where the control plane refuses them", () => {
  const offered = (given) => ["pause", "resume", "cancel", "delete"].filter((verb) => !refusal(verb, given));
  assert.deepEqual(offered(job("QUEUED")), ["pause", "cancel"]);
  assert.deepEqual(offered(job("RUNNING", { spec: {} })), ["cancel"]);
  assert.deepEqual(offered(job("PAUSED", { holds: [{ kind: "USER" }] })), ["resume", "cancel"]);
  assert.deepEqual(offered(job("PAUSED", { holds: [{ kind: "OPERATOR" }] })), ["cancel"]);
  assert.deepEqual(offered(job("CANCELLING")), ["cancel"]);
  assert.deepEqual(offered(job("SUCCEEDED", { latestCheckpoint: "c" })), ["delete"]);
  assert.deepEqual(offered(job("FAILED", { latestCheckpoint: "c" })), ["resume", "delete"]);
  assert.deepEqual(offered(job("FAILED")), ["delete"]);
});

test("saved and free are said only when they were told", () => {
  const pause = { checkpoint: "c", checkpointVerified: true, releaseTime: "2026-01-01T00:00:00Z", fromWorker: "workers/w" };
  const known = (more, conditions = []) => {
    const { saved, free } = safety(job("PAUSED", { latestCheckpoint: "c", pause: { ...pause, ...more }, conditions }));
    return [saved, free];
  };
  assert.deepEqual(known({}), [true, true]);
  assert.deepEqual(known({ checkpointVerified: undefined }), [false, true]);
  assert.deepEqual(known({ releaseTime: undefined }), [true, false]);
  assert.deepEqual(known({}, [{ type: "RELEASE_UNCONFIRMED" }]), [true, false]);
});

test("a boundary is foreseen from what is left, and said as it was predicted", () => {
  const running = job("RUNNING", { progress: { epoch: 3, epochStep: 5, stepsPerEpoch: 10, remainingDuration: "65s" } });
  assert.deepEqual(nextBoundary(running), { epoch: 4, last: false, seconds: 5 });
  assert.equal(nextBoundary(job("RUNNING")).seconds, null);
  assert.equal(nextBoundary(job("RUNNING", { progress: { epoch: 9 } })).last, true);
  const asked = "2026-01-01T00:00:00Z";
  const pause = { requestTime: asked, predictedBoundaryTime: "2026-01-01T00:00:10Z", boundaryEpoch: 4 };
  assert.equal(prediction(job("PAUSING", { pause }), Date.parse(asked) + 4000), "Will pause after epoch 4, in about 6.0 s");
  assert.equal(prediction(job("PAUSING", { pause }), Date.parse(asked) + 11000), "Will pause after epoch 4, later than foreseen");
  assert.equal(ahead(asked, pause.predictedBoundaryTime, Date.parse(asked) - 3.6e6), 10, "a clock that is wrong promises no more than was predicted");
  assert.match(prediction(job("PAUSING", { pause: { mode: "LATEST", lostSteps: 7, lostDuration: "2s" } }), 0), /gives up 7 steps \(2.0 s of training\)/);
  assert.match(situation(job("SOMETHING_NEW"), 0), /does not know/);
});

test("phases that were not reached have no duration", () => {
  const spans = phases({ requestTime: "2026-01-01T00:00:00Z", boundaryTime: "2026-01-01T00:00:02Z" }).map(([, span]) => span);
  assert.deepEqual(spans, [2, null, null, null, null, null]);
});

test("curves have gaps where nothing is known", () => {
  const epochs = [{ epoch: 1, attempt: 1, values: { loss: 1 } }, { epoch: 2, attempt: 2, values: { loss: "NaN", val_loss: 2 } }];
  const { x, columns } = ofEpochs(epochs);
  assert.deepEqual([x, columns.get("loss"), columns.get("val_loss")], [[1, 2], [1, null], [null, 2]]);
  assert.deepEqual(marksOf({ pause: { pauseTime: "t", epoch: 1 } }, epochs, "epoch").map(({ kind, x: at }) => [kind, at]), [["attempt", 1.5], ["pause", 1]]);
  assert.deepEqual(grouped(["lr", "val_loss", "train_loss", "val_accuracy"]).map(([title]) => title), ["Loss", "val_accuracy", "lr"]);
  const at = (second) => ({ time: new Date(second * 1000).toISOString(), workerCpuPercent: 5 });
  assert.deepEqual(ofSamples([at(0), at(5), at(100)]).column((each) => each.workerCpuPercent), [5, 5, null, 5]);
  assert.deepEqual([share("1", "4"), share(undefined, "4"), share("1", undefined)], [25, null, null]);
});
