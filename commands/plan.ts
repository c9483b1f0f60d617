import { type Command, Option } from "commander";
import { readConfig } from "../queues/config.ts";
import type { Role } from "../queues/names.ts";
import { detectCard, hostCard, makePlan } from "../workers/gpu/plan.ts";
import { planReport } from "../workers/gpu/plan-report.ts";
import { memorySize } from "./options.ts";
import { EXIT_MISSED, type Run, say } from "./run.ts";

export function addPlan(program: Command, run: Run): void {
  program
    .command("plan")
    .description("say what fits on the card before anything is loaded, with settings that do")
    .option("--student <model>", "a GGUF file, a model's folder, owner/name or hf:owner/name:quantisation (default: STUDENT_MODEL)")
    .option("--talker <model>", "the same for the Talker (default: TALKER_MODEL)")
    .option("--draft <model>", "check this draft for the Student")
    .option("--vram <size>", "plan for a card of that size, such as 12GiB or 12227MiB (default: the card that is there)", memorySize)
    .option("--free <size>", "what is free on it (default: what nvidia-smi says, or all)", memorySize)
    .option("--env", "print only the settings, for a .env file")
    .addOption(new Option("--json", "print the plan as one object").conflicts("env"))
    .addHelpText("after", "\nExit codes: 0 settings that fit exist for both models, 3 they don't.")
    .action((options) => run(() => runPlan(options)));
}

interface PlanCommandOptions {
  student?: string;
  talker?: string;
  draft?: string;
  vram?: number;
  free?: number;
  json?: boolean;
  env?: boolean;
}

async function runPlan(options: PlanCommandOptions): Promise<number> {
  const config = readConfig();
  const { vram, free, draft } = options;
  const profileOf = (role: Role) => {
    const { mode, model } = config.profiles[role];
    // A model that is named to be planned for here is none of a server elsewhere.
    const isElsewhere = mode === "ollama" || mode === "remote";
    const planned = options[role] !== undefined && isElsewhere ? "embedded" : mode;
    return { ...config.profiles[role], mode: planned, model: options[role] ?? model };
  };
  const taken = free === undefined ? "All of it is taken as free: say --free for what a desktop leaves." : null;
  const found = vram === undefined ? await detectCard(config.gpuId) : { card: null, processes: [], note: taken };
  const asked = vram === undefined ? null : { kind: "gpu" as const, name: "the card of --vram", totalBytes: vram, freeBytes: vram };
  const card = asked ?? found.card ?? hostCard();
  const plan = await makePlan(
    { student: profileOf("student"), talker: profileOf("talker") },
    {
      card: { ...card, freeBytes: free ?? card.freeBytes },
      processes: found.processes,
      note: found.note,
      draft,
      dataDir: config.dataDir,
      hfToken: config.hfToken,
    },
  );
  say(options.json ? `${JSON.stringify(plan)}\n` : options.env ? plan.env : planReport(plan));
  return plan.safe ? 0 : EXIT_MISSED;
}
