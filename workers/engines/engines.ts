import type { Logger } from "pino";
import type { Config, ModelProfile } from "../../queues/config.ts";
import { createEmbeddedEngine } from "./embedded.ts";
import type { Engine, EngineFactory } from "./engine.ts";
import { createLlamaServerEngine } from "./llama-server.ts";
import { createOllamaEngine, createRemoteEngine } from "./served-elsewhere.ts";
import { createVllmEngine } from "./vllm.ts";

/** The engine that a profile's mode names. */
export function engineFactory(config: Config, log: Logger): EngineFactory {
  const { dataDir, hfToken, engineRamCapBytes: ramCapBytes, engineVramCapBytes: vramCapBytes } = config;
  return ({ mode }: ModelProfile): Engine => {
    switch (mode) {
      case "embedded":
        return createEmbeddedEngine({ dataDir, hfToken, ramCapBytes, vramCapBytes, log });
      case "vllm":
        return createVllmEngine({ bin: config.vllmBin, dataDir, hfToken, log });
      case "llamacpp":
        return createLlamaServerEngine({ bin: config.llamaServerBin, dataDir, hfToken, log });
      case "ollama":
        return createOllamaEngine();
      case "remote":
        return createRemoteEngine();
    }
  };
}
