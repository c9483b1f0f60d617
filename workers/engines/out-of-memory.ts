import { readFileSync } from "node:fs";

/** What engines print, or throw, when memory runs out while loading or serving. */
const OUT_OF_MEMORY = [
  // node-llama-cpp: refused by its estimate, or by a cap.
  /InsufficientMemoryError/,
  /too large for the available (V?RAM|memory)/i,
  // llama.cpp, in node-llama-cpp and llama-server.
  /insufficient memory \(attempted to allocate/,
  /failed to allocate (\w+ )?buffer/i,
  /cudaMalloc failed: out of memory/,
  /ErrorOutOfDeviceMemory/,
  /GGML_ASSERT\(ctx->mem_buffer != NULL\)/,
  // vLLM and PyTorch.
  /OutOfMemoryError/,
  /CUDA out of memory/i,
  /Free memory on device .* is less than desired GPU memory utilization/,
  /No available memory for the cache blocks/,
  /To serve at least one request with the model'?s'? max seq len/,
  /not enough GPU memory/i,
  // The runtime and the C library.
  /std::bad_alloc/,
  /JavaScript heap out of memory/,
  /Fatal process out of memory/,
  /Cannot allocate memory/,
];

/** Whether a model server's last words, or its error, tell of memory running out. */
export function tellsOfOutOfMemory(text: string): boolean {
  return OUT_OF_MEMORY.some((pattern) => pattern.test(text));
}

/**
 * How many processes the kernel's out-of-memory killer has ended on this host, null off Linux. It kills without a word, by
 * SIGKILL: only a count that has risen tells it from any other kill.
 */
export function kernelOomKills(): number | null {
  try {
    const count = /^oom_kill (\d+)$/m.exec(readFileSync("/proc/vmstat", "utf8"))?.[1];
    return count === undefined ? null : Number(count);
  } catch {
    return null;
  }
}
