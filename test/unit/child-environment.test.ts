import { expect, test } from "vitest";
import { childEnvironment, cudaEnvironment } from "../../workers/engines/child-environment.ts";

const namesOf = (names: string[], more?: string[]) =>
  Object.keys(childEnvironment(Object.fromEntries(names.map((name) => [name, "x"])), more)).sort();

test("what vLLM and llama-server are steered by passes", () => {
  const names = [
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HIP_VISIBLE_DEVICES",
    "HOME",
    "HSA_OVERRIDE_GFX_VERSION",
    "HTTPS_PROXY",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LLAMA_ARG_CACHE_RAM",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PATH",
    "PYTORCH_CUDA_ALLOC_CONF",
    "ROCR_VISIBLE_DEVICES",
    "TORCH_CUDA_ARCH_LIST",
    "VLLM_ATTENTION_BACKEND",
    "VLLM_CPU_KVCACHE_SPACE",
    "XDG_CACHE_HOME",
    "no_proxy",
  ];
  expect(namesOf(names)).toEqual(names);
});

test("secrets don't, of whatever family, and neither does what is not known", () => {
  const names = [
    "API_KEYS",
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "LLAMA_API_KEY",
    "REDIS_URL",
    "SSH_AUTH_SOCK",
    "VLLM_API_KEY",
    "WEBHOOK_SECRET",
  ];
  expect(namesOf(names)).toEqual([]);
  expect(namesOf(["NOT_KNOWN"])).toEqual([]);
  expect(namesOf(["NOT_KNOWN", "HF_TOKEN"], ["NOT_KNOWN"])).toEqual(["NOT_KNOWN"]);
});

test("a card is named by its UUID, to vLLM by its number on the bus; none hides all; without one nothing is said", () => {
  const gpu = { uuid: "GPU-1", index: 3 };
  expect(cudaEnvironment(gpu)).toEqual({ CUDA_VISIBLE_DEVICES: "GPU-1", CUDA_DEVICE_ORDER: "PCI_BUS_ID" });
  expect(cudaEnvironment(gpu, { byIndex: true }).CUDA_VISIBLE_DEVICES).toBe("3");
  expect(cudaEnvironment({ uuid: "MIG-1", index: null }, { byIndex: true }).CUDA_VISIBLE_DEVICES).toBe("MIG-1");
  expect(cudaEnvironment("none")).toEqual({ CUDA_VISIBLE_DEVICES: "" });
  expect(cudaEnvironment(undefined)).toEqual({});
});
