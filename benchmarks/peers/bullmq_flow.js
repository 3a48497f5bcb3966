// BullMQ: a flow, whose parent job is the callback, on worker processes. Prints the same line as contend.py.
//
//     node bullmq_flow.js JOBS CONCURRENCY PROCESSES WARM_UP IDLE_SECONDS

const { fork } = require("node:child_process");
const { FlowProducer, Worker } = require("bullmq");
const IORedis = require("ioredis");

const URL = process.env.REDIS_URL || "redis://127.0.0.1:6379/0";
const DONE = "benchmark:done";
const connect = () => new IORedis(URL, { maxRetriesPerRequest: null });

async function work(concurrency) {
  const redis = connect();
  new Worker("jobs", async () => null, { connection: connect(), concurrency });
  new Worker("callbacks", async () => { await redis.rpush(DONE, 1); }, { connection: connect() });
}

async function measure(flows, redis, jobs) {
  const begun = process.hrtime.bigint();
  const children = [];
  for (let index = 0; index < jobs; index++) children.push({ name: "noop", queueName: "jobs", data: [index] });
  await flows.add({ name: "done", queueName: "callbacks", data: [], children });
  await redis.blpop(DONE, 0);
  return Number(process.hrtime.bigint() - begun) / 1e9;
}

async function main() {
  const [jobs, concurrency, processes, warmUp, idle] = process.argv.slice(2).map(Number);
  const redis = connect();
  await redis.flushall();
  const workers = Array.from({ length: processes }, () => fork(__filename, ["work", String(concurrency)]));
  const end = () => workers.forEach((worker) => worker.kill("SIGKILL"));
  process.on("SIGTERM", () => { end(); process.exit(143); });
  try {
    const flows = new FlowProducer({ connection: connect() });
    await measure(flows, redis, warmUp);
    await new Promise((resolve) => setTimeout(resolve, idle * 1000));
    const seconds = await measure(flows, redis, jobs);
    const versions = { bullmq: require("bullmq/package.json").version, ioredis: require("ioredis/package.json").version, node: process.versions.node };
    console.log(JSON.stringify({ jobs, jobs_per_second: jobs / seconds, versions }));
  } finally {
    end();
  }
  process.exit(0);
}

if (process.argv[2] === "work") work(Number(process.argv[3]));
else main();
