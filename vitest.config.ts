import path from "node:path";
import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    exclude: ["test/engines/**", "node_modules/**"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // Many tests start real processes, which load the same files. The folder is as safe as the packages beside it: what lies there is run.
    env: { NODE_COMPILE_CACHE: path.join(import.meta.dirname, "node_modules/.cache/compile") },
  },
});
