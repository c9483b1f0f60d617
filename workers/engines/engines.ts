import type { Logger } from "pino";
import type { Config, ModelProfile } from "../../queues/config.ts";
import { childEnvironment, cudaEnvironment } from "./child-environment.ts";
import { createEmbeddedEngine } from "./embedded.ts";
import type { Engine, EngineFactory, VisibleGpu } from "./engine.ts";
import { createLlamaServerEngine } from "./llama-server.ts";
import { createOllamaEngine, createRemoteEngine } from "./served-elsewhere.ts";
import { createVllmEngine } from "./vllm.ts";

/** The engine that a profile's mode names. */
export function engineFactory(config: Config, log: Logger): EngineFactory {
  const { dataDir, hfToken, engineRamCapBytes: ramCapBytes, engineVramCapBytes: vramCapBytes } = config;
  return ({ mode }: ModelProfile, gpu?: VisibleGpu): Engine => {
    const inherited = childEnvironment(process.env, config.engineEnv);
    const environment = { ...inherited, ...cudaEnvironment(gpu, { byIndex: mode === "vllm" }) };
    switch (mode) {
      case "embedded":
        return createEmbeddedEngine({ dataDir, hfToken, ramCapBytes, vramCapBytes, environment, log });
      case "vllm":
        return createVllmEngine({ bin: config.vllmBin, dataDir, hfToken, environment, log });
      case "llamacpp":
        return createLlamaServerEngine({ bin: config.llamaServerBin, dataDir, hfToken, environment, log });
      case "ollama":
        return createOllamaEngine();
      case "remote":
        return createRemoteEngine();
    }
  };
}
