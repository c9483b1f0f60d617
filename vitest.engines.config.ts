import { defineConfig } from "vitest/config";

/** Real engines of others: see test/engines/run.ts. */
export default defineConfig({
  test: {
    include: ["test/engines/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 1,
    fileParallelism: false,
    testTimeout: 240_000,
    hookTimeout: 240_000,
  },
});
