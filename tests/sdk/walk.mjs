// The whole surface through openai-node, run in the folder whose node_modules has it.

import assert from "node:assert/strict";
import { createHash, randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

// From the working folder: this file lies where no packages are.
const packages = createRequire(`${process.cwd()}/`);
const { OpenAI, toFile } = packages("openai");
const { VERSION } = packages("openai/version");

const MODEL = "attune/tiny";
const TAG = randomUUID().slice(0, 8);
// This SDK sends what gives permissions with an administrator's key only; here the project's own is enough.
const client = new OpenAI({ adminAPIKey: process.env.OPENAI_API_KEY });
const jobs = client.fineTuning.jobs;
const walked = [];

async function every(page) {
  const items = [];
  for await (const item of page) items.push(item);
  return items;
}

/** The error of this class that the call ends with; its headers say that it was sent once. */
async function refusal(kind, call) {
  const sent = [];
  const patient = client.withOptions({
    fetch: (url, init) => {
      sent.push(url);
      return fetch(url, init);
    },
  });
  let answer;
  try {
    answer = await call(patient);
  } catch (error) {
    assert.ok(error instanceof kind, String(error.stack));
    assert.equal(sent.length, 1, `sent ${sent.length} times`);
    assert.ok(error.requestID, "no x-request-id");
    assert.deepEqual(Object.keys(error.error).sort(), ["code", "message", "param", "type"]);
    return error;
  }
  assert.fail(`no ${kind.name} but ${JSON.stringify(answer)}`);
}

async function until(get, isTrue, seconds = 90) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const answer = await get();
    if (isTrue(answer)) return answer;
    assert.ok(Date.now() < deadline, `not within ${seconds} s: ${JSON.stringify(answer)}`);
    await sleep(100);
  }
}

function rows(count) {
  const talk = (n) => ({
    messages: [
      { role: "user", content: `What comes after ${n}?` },
      { role: "assistant", content: String(n + 1) },
    ],
  });
  return Buffer.from(Array.from({ length: count }, (_, n) => `${JSON.stringify(talk(n))}\n`).join(""));
}

const settled = (id) => until(() => client.files.retrieve(id), (file) => file.status !== "uploaded");
const bytesOf = async (id) => Buffer.from(await (await client.files.content(id)).arrayBuffer());

async function files() {
  const content = rows(12);
  const file = await client.files.create({ file: await toFile(content, "train.jsonl"), purpose: "fine-tune" });
  const { status, bytes, filename } = await settled(file.id);
  assert.deepEqual([status, bytes, filename], ["processed", content.length, "train.jsonl"]);
  assert.deepEqual(await bytesOf(file.id), content);

  const expiring = [];
  for (const n of [0, 1, 2]) {
    expiring.push(
      await client.files.create({
        file: await toFile(Buffer.from("some text"), `${TAG}-${n}.txt`),
        purpose: "user_data",
        expires_after: { anchor: "created_at", seconds: 3600 },
      }),
    );
  }
  assert.ok(expiring.every((one) => one.expires_at === one.created_at + 3600));
  const listed = await every(client.files.list({ purpose: "user_data", limit: 1 }));
  const mine = listed.filter((one) => one.filename.startsWith(TAG)).map((one) => one.id);
  assert.deepEqual(mine, expiring.map((one) => one.id).reverse());
  for (const { id } of expiring) assert.equal((await client.files.delete(id)).deleted, true);
  await refusal(OpenAI.NotFoundError, (patient) => patient.files.retrieve(expiring[0].id));
  walked.push("files");
  return file.id;
}

async function uploads() {
  const content = rows(40);
  const about = { filename: "parts.jsonl", mime_type: "text/jsonl", purpose: "fine-tune" };
  const upload = await client.uploads.create({ bytes: content.length, ...about });
  const pieces = [content.subarray(0, 1000), content.subarray(1000, 2000), content.subarray(2000)];
  // At once: the order is the completion's.
  const parts = await Promise.all(
    pieces.map(async (piece) => client.uploads.parts.create(upload.id, { data: await toFile(piece, "part") })),
  );
  const whole = await client.uploads.complete(upload.id, {
    part_ids: parts.map((part) => part.id),
    md5: createHash("md5").update(content).digest("hex"),
  });
  assert.equal(whole.status, "completed");
  assert.equal((await settled(whole.file.id)).status, "processed");
  assert.deepEqual(await bytesOf(whole.file.id), content);
  await client.files.delete(whole.file.id);

  const other = await client.uploads.create({ bytes: 10, ...about });
  const part = await client.uploads.parts.create(other.id, { data: await toFile(Buffer.from("01234"), "part") });
  // Five bytes of ten.
  const complete = (patient) => patient.uploads.complete(other.id, { part_ids: [part.id] });
  await refusal(OpenAI.BadRequestError, complete);
  assert.equal((await client.uploads.cancel(other.id)).status, "cancelled");
  await refusal(OpenAI.ConflictError, complete);
  walked.push("uploads");
}

/** A job of two steps, which are one epoch. */
const wanted = (fileId, more = {}) => ({
  model: MODEL,
  training_file: fileId,
  seed: 7,
  method: { type: "supervised", supervised: { hyperparameters: { batch_size: 6 } } },
  ext: { max_steps: 2, lora: { rank: 2 } },
  ...more,
});
const ended = (job) => ["succeeded", "failed", "cancelled"].includes(job.status);

async function submit(fileId) {
  const job = await jobs.create(
    wanted(fileId, { validation_file: fileId, suffix: "walk", metadata: { walk: TAG } }),
  );
  assert.deepEqual([job.status, job.model, job.seed], ["validating_files", MODEL, 7]);
  assert.deepEqual(job.ext.options, { max_steps: 2, lora: { rank: 2 } });
  const needed = await refusal(OpenAI.ConflictError, (patient) => patient.files.delete(fileId));
  assert.ok(needed.message.includes(job.id));
  const listed = await every(jobs.list({ limit: 1, metadata: { walk: TAG } }));
  assert.deepEqual(listed.map((one) => one.id), [job.id]);
  return job.id;
}

/** This job through to its model; another paused, resumed and cancelled. */
async function tune(fileId, jobId) {
  const again = { headers: { "Idempotency-Key": `walk-${TAG}` } };
  const other = await jobs.create(wanted(fileId), again);
  assert.equal((await jobs.create(wanted(fileId), again)).id, other.id);
  await refusal(OpenAI.UnprocessableEntityError, (patient) =>
    patient.fineTuning.jobs.create(wanted(fileId, { suffix: "other" }), again),
  );
  const page = await jobs.list({ limit: 1, after: other.id });
  assert.deepEqual(page.data.map((one) => one.id), [jobId]);

  await jobs.pause(other.id);
  await until(() => jobs.retrieve(other.id), (one) => one.ext.phase === "paused");
  assert.equal((await jobs.resume(other.id)).status, "queued");
  await jobs.cancel(other.id);
  assert.equal((await until(() => jobs.retrieve(other.id), ended)).status, "cancelled");
  await refusal(OpenAI.ConflictError, (patient) => patient.fineTuning.jobs.resume(other.id));

  const done = await until(() => jobs.retrieve(jobId), ended);
  assert.equal(done.status, "succeeded", JSON.stringify(done.error));
  assert.ok(done.trained_tokens > 0);
  assert.equal(done.method.supervised.hyperparameters.batch_size, 6);
  await refusal(OpenAI.ConflictError, (patient) => patient.fineTuning.jobs.cancel(jobId));
  walked.push("jobs");
  return done;
}

async function story(job) {
  const events = await every(jobs.listEvents(job.id, { limit: 2 }));
  assert.deepEqual(
    events.map((event) => event.data.number),
    events.map((_, n) => events.length - n),
  );
  assert.ok(events.some((event) => event.message === `New fine-tuned model created: ${job.fine_tuned_model}`));
  walked.push("events");

  const [checkpoint, ...more] = await every(jobs.checkpoints.list(job.id, { limit: 1 }));
  assert.deepEqual(more, []);
  assert.equal(checkpoint.step_number, 2);
  assert.ok(checkpoint.metrics.full_valid_loss > 0);
  walked.push("checkpoints");
  return checkpoint.fine_tuned_model_checkpoint;
}

async function permissions(name) {
  const door = client.fineTuning.checkpoints.permissions;
  const [given] = await every(door.create(name, { project_ids: [process.env.WALK_PROJECT] }));
  assert.equal(given.project_id, process.env.WALK_PROJECT);
  assert.deepEqual((await every(door.list(name, { limit: 1 }))).map((one) => one.id), [given.id]);
  const told = await door.retrieve(name, { project_id: given.project_id });
  assert.deepEqual(told.data.map((one) => one.id), [given.id]);
  const from = { fine_tuned_model_checkpoint: name };
  assert.equal((await door.delete(given.id, from)).deleted, true);
  await refusal(OpenAI.NotFoundError, (patient) =>
    patient.fineTuning.checkpoints.permissions.delete(given.id, from),
  );
  walked.push("permissions");
}

async function results(job) {
  const table = (await bytesOf(job.result_files[0])).toString().trimEnd().split("\n");
  assert.ok(table[0].startsWith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"));
  assert.equal(table.length, 3);
  const made = await Promise.all(job.result_files.map((id) => client.files.retrieve(id)));
  const weights = made.find((file) => file.filename === "adapter_model.safetensors");
  const content = await bytesOf(weights.id);
  assert.equal(createHash("sha256").update(content).digest("hex"), weights.ext.sha256);
  walked.push("results");
}

async function models(job) {
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
  const names = (await every(client.models.list())).map((model) => model.id);
  for (const name of [MODEL, "attune-tiny", job.fine_tuned_model]) assert.ok(names.includes(name), name);
  await refusal(OpenAI.PermissionDeniedError, (patient) => patient.models.delete(MODEL));
  assert.equal((await client.models.delete(job.fine_tuned_model)).deleted, true);
  const missing = await refusal(OpenAI.NotFoundError, (patient) => patient.models.retrieve(job.fine_tuned_model));
  assert.equal(missing.code, "model_not_found");
  walked.push("models");
}

async function errors(fileId) {
  const create = (body) => (patient) => patient.fineTuning.jobs.create(body);
  const epochs = { type: "supervised", supervised: { hyperparameters: { n_epochs: 0 } } };
  let wrong = await refusal(OpenAI.BadRequestError, create(wanted(fileId, { method: epochs })));
  assert.deepEqual([wrong.param, wrong.code], ["method.supervised.hyperparameters.n_epochs", "invalid_value"]);
  wrong = await refusal(OpenAI.BadRequestError, create(wanted(fileId, { ext: { lora: { rnak: 2 } } })));
  assert.equal(wrong.param, "ext.lora.rnak");
  assert.ok(wrong.message.includes("ext.lora.rank"));
  wrong = await refusal(OpenAI.BadRequestError, (patient) => patient.fineTuning.jobs.list({ after: "ftjob-none" }));
  assert.equal(wrong.param, "after");
  await refusal(OpenAI.NotFoundError, (patient) => patient.fineTuning.jobs.retrieve("ftjob-none"));
  const unknown = await refusal(OpenAI.AuthenticationError, (patient) =>
    patient.withOptions({ apiKey: "sk-attune-nobodys" }).fineTuning.jobs.list(),
  );
  assert.equal(unknown.code, "invalid_api_key");
  const talk = [{ role: "user", content: "Hello" }];
  const absent = await refusal(OpenAI.NotFoundError, (patient) =>
    patient.chat.completions.create({ model: MODEL, messages: talk }),
  );
  assert.ok(absent.message.includes("not offered"));
  walked.push("errors");
}

/** Runs `during` with a webhook endpoint, then sees that its receiver heard of the job's end. */
async function webhooks(during) {
  const got = [];
  const server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => (body += chunk));
    request.on("end", () => {
      got.push({ headers: request.headers, body });
      response.writeHead(204).end();
    });
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const door = client.webhooks;
  const type = "fine_tuning.job.succeeded";
  try {
    assert.ok((await door.eventTypes.list()).data.includes(type));
    const url = `http://127.0.0.1:${server.address().port}/hook`;
    const made = await door.create({ name: `walk ${TAG}`, url, event_types: [type] });
    const job = await during();
    const unwrapped = (secret) => Promise.all(got.map(({ body, headers }) => door.unwrap(body, headers, secret)));
    // Other walks' jobs may end meanwhile; they are told of as well.
    await until(() => unwrapped(made.signing_secret), (all) => all.some((event) => event.data.id === job.id), 30);
    assert.equal((await door.update(made.id, { name: "walked" })).name, "walked");
    assert.equal((await door.retrieve(made.id)).name, "walked");
    assert.ok((await every(door.list({ limit: 1 }))).some((one) => one.id === made.id));
    const rotated = await door.rotateSecret(made.id);
    assert.notEqual(rotated.signing_secret, made.signing_secret);
    got.length = 0;
    assert.equal((await door.test(made.id, { event_type: type })).status_code, 204);
    assert.equal((await unwrapped(rotated.signing_secret))[0].type, type);
    assert.equal((await door.delete(made.id)).deleted, true);
    await refusal(OpenAI.NotFoundError, (patient) => patient.webhooks.retrieve(made.id));
    walked.push("webhooks");
    return job;
  } finally {
    server.close();
    server.closeAllConnections();
  }
}

const fileId = await files();
const job = await webhooks(async () => {
  const jobId = await submit(fileId);
  // While it trains.
  await uploads();
  await errors(fileId);
  return tune(fileId, jobId);
});
await permissions(await story(job));
await results(job);
await models(job);
await client.files.delete(fileId);
console.log(JSON.stringify({ version: VERSION, walked }));
