import { expect, test } from "vitest";
import { BatchKeeper } from "../../api/batch-keeper.ts";

test("a batch that can't be looked at holds no other one up", async () => {
  const looked: string[] = [];
  const errors: string[] = [];
  const store = {
    openIds: async () => ["unreadable", "fine"],
    read: async (batchId: string) => {
      if (batchId === "unreadable") throw new Error("of a version that is yet to come");
      looked.push(batchId);
    },
  };
  const deps = { store, onError: (error: Error) => errors.push(error.message) };
  const keeper = new BatchKeeper(deps as unknown as ConstructorParameters<typeof BatchKeeper>[0]);
  keeper.start();
  await expect.poll(() => looked).toEqual(["fine"]);
  keeper.close();
  expect(errors).toEqual(["of a version that is yet to come"]);
});
