import { chmod, mkdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";

/** A machine with a 12 GB card, as far as programs on the PATH can tell: stand-ins for nvidia-smi and vllm. */
export interface FakeGpuMachine {
  folder: string;
  vllmBin: string;
  /** What the vLLM stand-in does wrong from now on: `oom`, `leaks`, `sleep-leaks`, `no-wake`, or nothing. */
  misbehave(behaviour: string): Promise<void>;
  /** What the vLLM servers were told, in order. */
  log(): Promise<string[]>;
  /** The environment that the last vLLM of this name was started with. */
  environmentOf(servedModelName: string): Promise<Record<string, string>>;
  /** VRAM in use besides the model servers': the desktop, a game. */
  otherUse(mebibytes: number): Promise<void>;
  restore(): void;
}

export const TOTAL_MEBIBYTES = 12_227;

export async function fakeGpuMachine(folder: string): Promise<FakeGpuMachine> {
  const bin = path.join(folder, "bin");
  await mkdir(bin, { recursive: true });
  const script = async (name: string, text: string) => {
    await writeFile(path.join(bin, name), `#!/bin/sh\n${text}\n`);
    await chmod(path.join(bin, name), 0o755);
  };
  // A file whose process has ended is a leak only where its owner meant it to be one.
  await script(
    "nvidia-smi",
    `total=${TOTAL_MEBIBYTES}
use() {
  used=$(cat ${folder}/other) || exit
  for file in ${folder}/vram-*; do
    [ -e "$file" ] || continue
    pid=\${file##*-}
    if [ -e /proc/$pid ] || [ "$(cat ${folder}/behaviour)" = leaks ]; then used=$((used + $(cat "$file"))); fi
  done
}
case "$*" in
  *query-gpu=name*) use; echo "NVIDIA GeForce RTX 5070, $total, $((total - used))" ;;
  *uuid*) echo 0, GPU-11111111-2222-3333-4444-555555555555 ;;
  *compute-apps=pid,process_name*) for file in ${folder}/vram-*; do [ ! -e "$file" ] || echo "\${file##*-}, a-game, $(cat "$file")"; done ;;
  *compute-apps*) for file in ${folder}/vram-*; do [ ! -e "$file" ] || echo "\${file##*-}, $(cat "$file")"; done ;;
  *-lms*)
    while use && echo "2026/10/05 12:00:00.000, $total, $used, $((total - used)), 37, 55, 92.50, 2407"; do sleep 0.2; done ;;
  *) use; echo "$used, $total" ;;
esac`,
  );
  await script("vllm", `FAKE_GPU_DIR=${folder} exec ${process.execPath} ${path.join(import.meta.dirname, "fake-vllm.mjs")} "$@"`);
  await writeFile(path.join(folder, "other"), "600");
  await writeFile(path.join(folder, "behaviour"), "");
  await writeFile(path.join(folder, "log"), "");
  const before = process.env.PATH;
  process.env.PATH = `${bin}:${before}`;
  return {
    folder,
    vllmBin: path.join(bin, "vllm"),
    misbehave: (behaviour) => writeFile(path.join(folder, "behaviour"), behaviour),
    log: async () => (await readFile(path.join(folder, "log"), "utf8")).trim().split("\n"),
    environmentOf: async (name) => JSON.parse(await readFile(path.join(folder, `environ-${name}`), "utf8")),
    otherUse: (mebibytes) => writeFile(path.join(folder, "other"), String(mebibytes)),
    restore: () => {
      process.env.PATH = before;
    },
  };
}
