import { createHash } from "node:crypto";
import { once } from "node:events";
import { rm } from "node:fs/promises";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { z } from "zod";
import { ownIdentity } from "../../queues/process-identity.ts";

/**
 * One process of this host per GPU, whatever Redis it uses (the lease knows only its own Redis): an exclusive Unix socket, which
 * the kernel gives up when its process ends, however it ends. Who connects is told who holds it. On Linux the name lies in the
 * abstract namespace and leaves no file; elsewhere it is a file that a dead owner leaves behind and the next one removes.
 */
const ownerSchema = z.object({ pid: z.number(), startTicks: z.number().nullable(), what: z.string() });
export type GpuOwner = z.infer<typeof ownerSchema>;

const ASK_TIMEOUT_MS = 500;

export interface HostLock {
  release(): Promise<void>;
}

/**
 * Takes the lock, or tells who has it: null when that process does not answer (it is stopped, or another user's).
 * `what` says what this process is, for the messages of the others.
 */
export async function takeHostLock(gpuId: string, what: string): Promise<{ lock: HostLock } | { owner: GpuOwner | null }> {
  const name = lockName(gpuId);
  const lock = (await listen(name, what)) ?? (await takeOverFile(name, what));
  return lock === undefined ? { owner: await askOwner(name) } : { lock };
}

function lockName(gpuId: string): string {
  const name = `mathllm-gpu-${createHash("sha256").update(gpuId).digest("hex").slice(0, 24)}`;
  return process.platform === "linux" ? `\0${name}` : path.join(os.tmpdir(), `${name}.sock`);
}

/** undefined when the name is taken. */
async function listen(name: string, what: string): Promise<HostLock | undefined> {
  const server = net.createServer((socket) => {
    socket.on("error", () => {});
    socket.end(JSON.stringify({ ...ownIdentity(), what } satisfies GpuOwner));
  });
  server.listen(name);
  try {
    await once(server, "listening");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EADDRINUSE") return undefined;
    throw error;
  }
  server.unref();
  return {
    release: async () => {
      if (!server.listening) return;
      server.close();
      await once(server, "close");
    },
  };
}

/** A socket file that nobody listens to any more. */
async function takeOverFile(name: string, what: string): Promise<HostLock | undefined> {
  if (name.startsWith("\0") || (await askOwner(name)) !== null) return undefined;
  const refused = await connect(name).then(
    (socket) => {
      socket.destroy();
      return false;
    },
    (error: NodeJS.ErrnoException) => error.code === "ECONNREFUSED",
  );
  if (!refused) return undefined;
  await rm(name, { force: true });
  return listen(name, what);
}

async function connect(name: string): Promise<net.Socket> {
  const socket = net.connect(name);
  await once(socket, "connect", { signal: AbortSignal.timeout(ASK_TIMEOUT_MS) });
  return socket;
}

async function askOwner(name: string): Promise<GpuOwner | null> {
  try {
    const socket = await connect(name);
    socket.setTimeout(ASK_TIMEOUT_MS, () => socket.destroy(new Error("no answer")));
    let text = "";
    for await (const chunk of socket) text += chunk;
    return ownerSchema.parse(JSON.parse(text));
  } catch {
    return null;
  }
}

/** "the worker, process 4711", for a message. */
export function ownerName(owner: GpuOwner | null): string {
  return owner === null ? "a process that does not answer (stopped, or another user's)" : `${owner.what}, process ${owner.pid}`;
}
