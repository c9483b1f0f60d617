// A stand-in for the vllm program: its command line, its HTTP surface and its way of failing, without a model.
// The VRAM it would hold stands in $FAKE_GPU_DIR/vram-PID in MiB; the stand-in for nvidia-smi adds those of live processes up.
import { appendFileSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import path from "node:path";

const version = process.env.FAKE_VLLM_VERSION ?? "0.32.0";
const folder = process.env.FAKE_GPU_DIR;
const [command, model, ...rest] = process.argv.slice(2);
if (command === "--version") {
  console.log(version);
  process.exit(0);
}

const KNOWN =
  "host port served-model-name middleware gpu-memory-utilization max-model-len max-num-seqs kv-cache-dtype enforce-eager enable-sleep-mode kv-offloading-size speculative-config".split(
    " ",
  );
const FLAGS = ["enforce-eager", "enable-sleep-mode"];
const options = {};
for (let i = 0; i < rest.length; i++) {
  const name = rest[i].replace(/^--/, "");
  if (!KNOWN.includes(name)) {
    console.error(`vllm: error: unrecognized arguments: ${rest[i]}`);
    process.exit(2);
  }
  options[name] = FLAGS.includes(name) ? true : rest[++i];
}
const behaviour = () => readFileSync(path.join(folder, "behaviour"), "utf8").trim();
const note = (text) => appendFileSync(path.join(folder, "log"), `${options["served-model-name"]} ${text}\n`);
const vramFile = path.join(folder, `vram-${process.pid}`);
const hold = (mebibytes) => writeFileSync(vramFile, String(mebibytes));
note(`start ${rest.join(" ")}`);
if (behaviour() === "oom" && Number(options["max-num-seqs"]) > 2) {
  console.error(
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
  );
  process.exit(1);
}

// What a test looks at: the environment and every request that came without the key, guarded by the real one or not.
writeFileSync(path.join(folder, `environ-${options["served-model-name"]}`), JSON.stringify(process.env));
const key = process.env.VLLM_API_KEY;
let sleeping = false;
let served = 0;
hold(8000);
const json = (response, status, body) => response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
const server = http.createServer(async (request, response) => {
  const url = new URL(request.url, "http://localhost");
  let body = "";
  for await (const chunk of request) body += chunk;
  const address = `${request.method} ${url.pathname}`;
  const developer = process.env.VLLM_SERVER_DEV_MODE === "1" && options["enable-sleep-mode"];
  const authorised = request.headers.authorization === `Bearer ${key}`;
  if (!authorised) note(`without key ${address}`);
  // As the guard does; without it vLLM asks for the key below /v1 alone.
  const guarded = options.middleware === "mathllm_guard.Guard" ? address !== "GET /health" : url.pathname.startsWith("/v1");
  if (key !== undefined && guarded && !authorised) return json(response, 401, { error: "Unauthorized" });
  if (address === "GET /health") return response.writeHead(200).end();
  if (address === "GET /v1/models") {
    return json(response, 200, {
      object: "list",
      data: [{ id: options["served-model-name"], object: "model", root: model, max_model_len: Number(options["max-model-len"]) }],
    });
  }
  if (address === "GET /metrics") return response.end(readFileSync(path.join(import.meta.dirname, "vllm-metrics.txt"), "utf8"));
  if (developer && address === "POST /sleep") {
    note(`sleep ${url.searchParams.get("level")}`);
    sleeping = true;
    // The memory comes back a moment after the answer; when it leaks it does not.
    if (behaviour() !== "sleep-leaks") setTimeout(() => hold(1100), 100);
    return response.end();
  }
  if (developer && address === "POST /wake_up") {
    note(`wake ${url.searchParams.get("tags") ?? ""}`.trim());
    if (behaviour() === "no-wake") return json(response, 500, { error: { message: "could not wake up" } });
    hold(8000);
    sleeping = url.searchParams.get("tags") === "weights";
    return response.end();
  }
  if (developer && address === "POST /collective_rpc") {
    note(`rpc ${JSON.parse(body).method}`);
    return json(response, 200, { results: [null] });
  }
  if (developer && address === "GET /is_sleeping") return json(response, 200, { is_sleeping: sleeping });
  if (address === "POST /v1/chat/completions") {
    if (sleeping) note("asked while asleep");
    served++;
    response.writeHead(200, { "content-type": "text/event-stream" });
    const send = (value) => response.write(`data: ${JSON.stringify(value)}\n\n`);
    send({ choices: [{ index: 0, delta: { content: "It is \\boxed{1}" }, finish_reason: null }] });
    send({ choices: [{ index: 0, delta: {}, finish_reason: "stop" }] });
    send({ choices: [], usage: { prompt_tokens: 10, completion_tokens: 5 } });
    return response.end("data: [DONE]\n\n");
  }
  json(response, 404, { error: { message: "Not Found" } });
});
setTimeout(() => server.listen(Number(options.port), options.host), 50);
const end = () => {
  note(`end after ${served}`);
  if (behaviour() !== "leaks") rmSync(vramFile, { force: true });
  process.exit(0);
};
process.on("SIGTERM", end);
