// A service in JavaScript that talks to Keyward through grpc-js. See ../README.md.
"use strict";

const fs = require("node:fs");
const path = require("node:path");

const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const { TARGET, KEY, SECRET, PROTO_DIR, TLS_DIR } = process.env;
const [CALLS, RATE, WORKERS, CANCEL_PERCENT] = ["CALLS", "RATE", "WORKERS", "CANCEL_PERCENT"].map((name) =>
  Number.parseInt(process.env[name], 10),
);
const CALL_MS = 20_000;

function credentials() {
  if (!TLS_DIR) {
    return grpc.credentials.createInsecure();
  }
  const [authority, key, certificate] = ["ca.pem", "caller.key", "caller.pem"].map((name) =>
    fs.readFileSync(path.join(TLS_DIR, name)),
  );
  return grpc.credentials.createSsl(authority, key, certificate);
}

const { KeyVerify } = grpc.loadPackageDefinition(
  loader.loadSync("keyward/v1/verify.proto", { includeDirs: [PROTO_DIR], enums: String, keepCase: true, oneofs: true }),
).keyward.v1;
const client = new KeyVerify(TARGET, credentials());
const bearer = new grpc.Metadata();
bearer.set("authorization", `Bearer ${KEY}`);

// What the tests read.
const report = { calls: 0, cancelled: 0, failed: {}, first_error: "", stream_ok: false, seconds: 0 };

function note(error) {
  report.first_error ||= String(error);
}

function count(error) {
  report.calls += 1;
  if (error?.code === grpc.status.CANCELLED) {
    report.cancelled += 1;
  } else if (error) {
    const code = grpc.status[error.code] ?? "WRONG";
    report.failed[code] = (report.failed[code] ?? 0) + 1;
    note(error);
  }
}

function notAllowed(reply) {
  return reply.decision === "DECISION_ALLOW" ? null : new Error(`a working key got ${reply.decision}`);
}

/** Makes one call. One that is to be cancelled is given up as soon as it is sent. */
function verify(cancels) {
  return new Promise((resolve) => {
    const options = { deadline: Date.now() + CALL_MS };
    const call = client.Verify({ secret: SECRET }, bearer, options, (error, reply) => {
      count(error ?? notAllowed(reply));
      resolve();
    });
    if (cancels) {
      setImmediate(() => call.cancel());
    }
  });
}

/** Makes the calls at their times, as many at once as there are workers, and says how long that took. */
async function drive() {
  const begin = performance.now();
  let next = 0;
  const worker = async () => {
    for (let n = next++; n < CALLS; n = next++) {
      const early = begin + (n * 1_000) / RATE - performance.now();
      if (early > 0) {
        await new Promise((resolve) => setTimeout(resolve, early));
      }
      await verify(n % 100 < CANCEL_PERCENT);
    }
  };
  await Promise.all(Array.from({ length: WORKERS }, worker));
  return (performance.now() - begin) / 1_000;
}

/** A stream of verifications that stays open. */
class Talk {
  #stream = client.StreamVerify(bearer);
  /** Answers, and in the end a status. */
  #heard = [];
  #wake = () => {};

  constructor() {
    const hear = (what) => {
      this.#heard.push(what);
      this.#wake();
    };
    this.#stream.on("data", hear);
    this.#stream.on("status", hear);
    this.#stream.on("error", () => {}); // the status says it too
  }

  async #next() {
    if (this.#heard.length === 0) {
      await new Promise((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, CALL_MS).unref();
      });
    }
    return this.#heard.shift();
  }

  async ask(correlation_id) {
    this.#stream.write({ request: { secret: SECRET, correlation_id } });
    const answer = await this.#next();
    if (answer?.correlation_id !== correlation_id || notAllowed(answer.response)) {
      throw new Error(`to ${correlation_id} the open stream said ${JSON.stringify(answer)}`);
    }
  }

  async hangUp() {
    this.#stream.end();
    const end = await this.#next();
    if (end?.code !== grpc.status.OK) {
      throw new Error(`the open stream ended with ${JSON.stringify(end)}`);
    }
  }
}

async function main() {
  const talk = new Talk();
  try {
    await talk.ask("first");
    report.seconds = await drive();
    await talk.ask("last");
    await talk.hangUp();
    report.stream_ok = true;
  } catch (error) {
    note(error);
  }
  console.log(JSON.stringify(report));
  client.close();
}

main();
