import { createBullBoard } from "@bull-board/api";
import { BullMQAdapter } from "@bull-board/api/bullMQAdapter";
import { ExpressAdapter } from "@bull-board/express";
import type { Router } from "express";
import type { Queues } from "../queues/open-queues.ts";

/**
 * Who looks at the board. `local`: whoever is at this machine, while no API keys are in use. `read`: a key that may see how the system does,
 * but not what others ask. `admin`: sees all, and may change what can be changed safely.
 */
export type BoardView = "local" | "read" | "admin";

/**
 * What an admin may do: nothing that runs a finished job again, or takes a job away that is waited for. A queue's rate limit has an address
 * of its own, which also wakes the workers.
 */
const SAFE_CHANGES = [
  "/api/queues/pause",
  "/api/queues/resume",
  "/api/queues/:queueName/pause",
  "/api/queues/:queueName/resume",
  "/api/queues/:queueName/promote",
  "/api/queues/:queueName/:jobId/promote",
];

const HIDDEN = "shown to the job's own key and to admins";

/** Bull Board over both queues. */
export function createBoard(queues: Queues, view: BoardView = "local", basePath = "/dashboards/queues"): Router {
  const serverAdapter = new ExpressAdapter();
  serverAdapter.setBasePath(basePath);
  const adapters = [queues.student, queues.talker].map((queue) => {
    const adapter = new BullMQAdapter(queue, { readOnlyMode: view !== "admin", allowRetries: false });
    if (view === "read") {
      adapter.setFormatter("data", ({ kind, priority, acceptedAt }) => ({ kind, priority, acceptedAt, problem: HIDDEN }));
      adapter.setFormatter("returnValue", (value) => value && HIDDEN);
    }
    return adapter;
  });
  createBullBoard({
    queues: adapters,
    serverAdapter,
    options: {
      uiConfig: { boardTitle: "mathllm" },
      handlerHooks: {
        before: ({ method, route }) =>
          method === "get" || view !== "admin" || SAFE_CHANGES.includes(route)
            ? { allow: true }
            : {
                allow: false,
                status: 405,
                message:
                  "Not from here: it could lose a job or run one twice. Pause, resume and promote are safe; jobs are cancelled by DELETE /jobs/ID.",
              },
      },
    },
  });
  return serverAdapter.getRouter() as Router;
}
