import type { VisibleGpu } from "./engine.ts";

/**
 * What a model server gets to see of this process's environment. It loads files and code of others (weights, chat templates, CUDA
 * kernels, Python packages), so it gets what such programs are steered by, and none of our keys. ENGINE_ENV names more.
 */
const NAMES = new Set(
  `PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR TEMP TMP
   LIBRARY_PATH CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH CC CXX MAX_JOBS
   VIRTUAL_ENV CONDA_PREFIX
   HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy
   SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
   DO_NOT_TRACK USE_TORCH`.split(/\s+/),
);

const PREFIXES = `LC_ LD_ DYLD_ XDG_ PYTHON NODE_
  CUDA_ CUDNN_ CUBLAS_ NVIDIA_ NVCC_ NCCL_ HIP_ HSA_ ROCR_ ROCM_ ROCBLAS_ HIPBLASLT_ MIOPEN_ AMD_ PYTORCH_ TORCH TRITON_ FLASHINFER_
  VK_ MESA_ ONEAPI_ SYCL_ ZE_ UR_ OMP_ MKL_ KMP_ GOMP_ OPENBLAS_ TBB_
  VLLM_ LLAMA_ GGML_ HF_ HUGGINGFACE_ TRANSFORMERS_ TOKENIZERS_ SAFETENSORS_`.split(/\s+/);

/** A name of the families above that holds a secret all the same, as HF_TOKEN does. */
const SECRET_NAME = /(^|_)(TOKEN|KEY|KEYS|SECRET|PASSWORD|CREDENTIALS)$/i;

/** The part of `env` that a model server is started with; `more` are names that the owner adds. */
export function childEnvironment(env: NodeJS.ProcessEnv = process.env, more: readonly string[] = []): NodeJS.ProcessEnv {
  const passes = (name: string) =>
    more.includes(name) || NAMES.has(name) || (PREFIXES.some((prefix) => name.startsWith(prefix)) && !SECRET_NAME.test(name));
  return Object.fromEntries(Object.entries(env).filter(([name]) => passes(name)));
}

/**
 * The variables that make CUDA see just this GPU. `byIndex` is for programs that read the list themselves and expect numbers: vLLM
 * refused UUIDs until 2026.
 */
export function cudaEnvironment(gpu: VisibleGpu | undefined, { byIndex = false } = {}): Record<string, string> {
  if (gpu === undefined) return {};
  if (gpu === "none") return { CUDA_VISIBLE_DEVICES: "" };
  const device = byIndex && gpu.index !== null ? String(gpu.index) : gpu.uuid;
  // Without it CUDA numbers the fastest first, and nvidia-smi by the bus.
  return { CUDA_DEVICE_ORDER: "PCI_BUS_ID", CUDA_VISIBLE_DEVICES: device };
}
