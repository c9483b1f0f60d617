import type { ErrorCode } from "./errors.ts";

/** Of every error: how it comes about, and what whoever sees it can do. A problem document's `type` leads here. */
export const ERROR_GUIDE: Record<ErrorCode, { cause: string; remedy: string }> = {
  "malformed-json": {
    cause: "The body could not be parsed as JSON, or the connection broke off before it was whole.",
    remedy: "Send one JSON object in UTF-8; the detail names the place.",
  },
  "invalid-request": {
    cause: "A field, a query parameter or a header has another form than expected, or there is one that is not known.",
    remedy: "Every wrong field is listed in errors with what was expected and what came.",
  },
  "body-too-large": {
    cause: "The body, one line of JSONL or one file is larger than the server takes.",
    remedy: "Send less, or raise BODY_LIMIT_BYTES (a body or line) or FILE_LIMIT_BYTES (a file).",
  },
  "unsupported-media-type": {
    cause: "The Content-Type, charset or Content-Encoding is not one that the address takes.",
    remedy: "Send application/json; batches also take application/jsonl, files multipart/form-data. Do not compress.",
  },
  "not-found": { cause: "No route has this address.", remedy: "The addresses are listed at / and in /openapi.json." },
  "unknown-job": {
    cause: "The id was never given out, belongs to another API key, or the job ended longer ago than JOB_RETENTION_SECONDS.",
    remedy: "Check the id and the key. To be told the end even when nobody asks, give the job a webhook.",
  },
  "unknown-batch": {
    cause: "The id was never given out, belongs to another API key, or the batch has expired.",
    remedy: "Check the id and the key; GET /batches lists those there are.",
  },
  "method-not-allowed": { cause: "The address exists and takes other methods.", remedy: "Use one of those in the Allow header." },
  "forbidden-origin": {
    cause:
      "A web page of another origin asked, one of another port of this machine included; or, without API keys, Host is no loopback name.",
    remedy: "Call it as localhost, make keys (mathllm keys add), or name the page's origin in CORS_ORIGINS.",
  },
  unauthorized: {
    cause: "API keys are in use, and the request carries none, or one that is unknown or revoked.",
    remedy: "Send Authorization: Bearer KEY. The command line takes it from API_KEY.",
  },
  forbidden: {
    cause: "The key is known, but its role does not allow this; needs names the role that does.",
    remedy: "Use a key with that role (mathllm keys add NAME --role ROLE).",
  },
  "rate-limited": {
    cause: "The key has sent more requests than its rate allows.",
    remedy: "Wait for Retry-After seconds, or raise the limit (mathllm keys limit NAME --rate).",
  },
  "too-many-jobs": {
    cause: "The key has as many unfinished jobs as it may have.",
    remedy: "Wait until some end, or raise the limit (mathllm keys limit NAME --jobs).",
  },
  "idempotency-conflict": {
    cause: "The Idempotency-Key came before with another body; jobId names the job it made.",
    remedy: "Use a new key for a new request, the same body for a repetition.",
  },
  "queue-full": {
    cause: "As many jobs of this class wait as may (INTERACTIVE_MAX_DEPTH, NORMAL_MAX_DEPTH, BATCH_MAX_DEPTH).",
    remedy: "Send it again after Retry-After seconds, or in another class.",
  },
  "deadline-unmeetable": {
    cause: "As expected now, the job would start after its class's deadline, or not end within its timeoutMs.",
    remedy: "Send it again after Retry-After seconds, give it more time, or send it as batch, which waits as long as it takes.",
  },
  "unknown-gpu": { cause: "No live worker has this GPU.", remedy: "GET /gpu shows those there are; mathllm worker starts one." },
  "files-full": {
    cause: "All files of /v1/files together have reached FILES_MAX_BYTES.",
    remedy: "Delete files that are no longer needed, or raise FILES_MAX_BYTES.",
  },
  "shutting-down": {
    cause: "The server is being stopped and takes nothing new; a streamed answer was cut off and its job cancelled.",
    remedy: "Send it again in a moment.",
  },
  "redis-unavailable": {
    cause: "Redis does not answer. Nothing was confirmed.",
    remedy: "Send it again, with an Idempotency-Key if it must not run twice. GET /readyz tells when Redis is back.",
  },
  "internal-error": {
    cause: "A fault of the server's own.",
    remedy: "Its log has the reason, under the X-Request-Id of the answer.",
  },
  cancelled: { cause: "The job was cancelled on request, or its client left.", remedy: "Send it again if it is still wanted." },
  "deadline-exceeded": {
    cause: "The job's timeoutMs ran out before its end, queueing included.",
    remedy: "Raise timeoutMs, or send it when less is waiting.",
  },
  "job-timeout": {
    cause: "The answer took longer than JOB_TIMEOUT_MS on the model.",
    remedy: "Lower maxTokens, or raise JOB_TIMEOUT_MS.",
  },
  "problem-too-long": {
    cause: "The problem, with its prompt and the answer's room, has more tokens than the model's context.",
    remedy: "Shorten it, or raise STUDENT_MAX_MODEL_LEN or TALKER_MAX_MODEL_LEN as far as the model allows.",
  },
  "solution-unfinished": {
    cause: "The token limit cut the Student's solution. An explanation of a fragment would be invented, so the Talker was not asked.",
    remedy: "Raise maxTokens in the request, or STUDENT_MAX_TOKENS and, where the context ends first, STUDENT_MAX_MODEL_LEN.",
  },
  "engine-failed": {
    cause: "The model server died or broke off. The job is tried JOB_ATTEMPTS times before it fails with this.",
    remedy: "Send it again. If it keeps coming, GET /gpu and the worker's log tell what the server said last.",
  },
  "engine-refused": {
    cause: "The model server answered that it can't serve this request.",
    remedy: "The detail carries its words; mostly a setting that this engine does not know.",
  },
  "out-of-memory": {
    cause: "The model does not fit, or ran out of memory. It is tried again with less, step by step.",
    remedy: "mathllm plan shows settings that fit; mathllm gpu what was lowered.",
  },
  "memory-taken": {
    cause: "Another program holds the memory that the model needs.",
    remedy: "Stop the program that the detail names; the worker goes on by itself.",
  },
  "job-crashes-model": {
    cause: "The model server died again and again while it ran this job, at the end with no other beside it.",
    remedy: "Change the problem or its sampling; the worker's log has the server's last words.",
  },
  "gpu-in-use": { cause: "Another process holds the GPU.", remedy: "Stop it, or set GPU_ID=cpu for a server on the CPU." },
  "gpu-unreadable": {
    cause:
      "nvidia-smi is there but does not tell of the GPU: the driver is broken, busy or has lost the card. Two models could meet on it.",
    remedy: "Run nvidia-smi and mend what it says; GPU_ID=cpu runs the models on the CPU.",
  },
  "engine-missing": {
    cause: "The engine's program is not installed, or not where it is looked for.",
    remedy: "Install it, or name it with VLLM_BIN or LLAMA_SERVER_BIN; mathllm doctor checks.",
  },
  "model-missing": { cause: "The model's file is not there.", remedy: "Check STUDENT_MODEL and TALKER_MODEL; mathllm doctor checks." },
  "model-invalid": {
    cause: "The file is no model that the engine can use, is cut short, or its draft has another vocabulary.",
    remedy: "Take another file; the detail says what was found.",
  },
  "model-download-failed": {
    cause: "The model could not be fetched: no network, no such file, too little disk space, a wrong digest, or it is gated.",
    remedy: "It is resumed at the next try. Gated ones need HF_TOKEN.",
  },
  "port-in-use": { cause: "Another program listens on the port.", remedy: "Stop it, or set PORT to a free one (0 finds one)." },
  "invalid-configuration": {
    cause: "An environment variable or an option has a value that can't be used.",
    remedy: "Every wrong one is named with what was expected; .env.example lists them all.",
  },
  "redis-binary-missing": {
    cause: "REDIS_URL is not set, and no Redis server could be found, fetched or compiled.",
    remedy: "Install redis-server, name one with REDIS_SERVER_BIN, or set REDIS_URL.",
  },
};
