import { createBullBoard } from "@bull-board/api";
import { BullMQAdapter } from "@bull-board/api/bullMQAdapter";
import { ExpressAdapter } from "@bull-board/express";
import type { Router } from "express";
import type { Queues } from "../queues/open-queues.ts";

/** Bull Board over both queues. Read only: its retry could run a finished job twice. */
export function createBoard(queues: Queues, basePath = "/dashboards/queues"): Router {
  const serverAdapter = new ExpressAdapter();
  serverAdapter.setBasePath(basePath);
  createBullBoard({
    queues: [queues.student, queues.talker].map((queue) => new BullMQAdapter(queue, { readOnlyMode: true, allowRetries: false })),
    serverAdapter,
    options: { uiConfig: { boardTitle: "mathllm" } },
  });
  return serverAdapter.getRouter() as Router;
}
