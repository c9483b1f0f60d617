import { ApiClient } from "./submit.ts";

/**
 * A client of a running system, in its types: `node producers/example.ts "What is 17 + 25?"`, with API_URL and API_KEY from the environment.
 * It hands the problem in, writes the solution as it comes, then the answer.
 */
const api = new ApiClient(process.env.API_URL ?? "http://localhost:3000", process.env.API_KEY);
const { jobId, estimatedStartMs } = await api.submit({ problem: process.argv[2] ?? "What is 17 + 25?", priority: "interactive" });
console.error(`${jobId} was accepted; a model is expected to begin in ${estimatedStartMs ?? "an unknown number of"} ms.`);

for await (const event of api.events(jobId)) {
  switch (event.event) {
    case "position":
      console.error(`${event.data.position} jobs before it`);
      break;
    case "token":
      process.stdout.write(event.data.text);
      break;
    case "result":
      console.log(event.data.status === "completed" ? `\nAnswer: ${event.data.result?.answer}` : event.data.error?.detail);
      process.exitCode = event.data.status === "completed" ? 0 : 1;
  }
}
