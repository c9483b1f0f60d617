import { stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import type { ModelProfile } from "../../queues/config.ts";
import type { WorkerStatus } from "../../queues/contracts.ts";
import { ROLES, type Role } from "../../queues/names.ts";
import type { EngineFactory, PreparationProgress } from "../engines/engine.ts";
import { DownloadTurn } from "./download-turn.ts";

/**
 * Brings each role's model onto this machine in the background, from the worker's start on, so that a swap waits for no network:
 *
 *   preparing ──prepared──► ready ──its files are gone or others (seen by `confirm`)──► preparing
 *    ▲   │                    ▲
 *    │   │ fails              │
 *    │   ▼                    │
 *    │  failed ──back-off over, or `retry`: tried again, still failed until it gets somewhere──┘
 *    └──────┘ progress
 *
 * A role that is not ready counts as one without work. Each role is prepared, fails and is tried again by itself; only downloads take turns.
 */
const BACKOFF_MS = 1000;
const BACKOFF_CAP_MS = 60_000;
const LOGGED_EVERY_MS = 2000;

export const ROLE_NAMES: Record<Role, string> = { student: "Student", talker: "Talker" };

export type PreparationStatus = WorkerStatus["models"]["student"]["preparation"];

export interface PreparationsOptions {
  profiles: Record<Role, ModelProfile>;
  createEngine: EngineFactory;
  /** Told when a role's state changes, or the reason for which it failed. */
  onChange: (role: Role, status: PreparationStatus) => void;
  log: Logger;
}

interface Prepared {
  files: string[];
  /** What the files were like. */
  fingerprint: string;
  /** Begins the next preparation. */
  outdated: () => void;
}

const UNKNOWN: PreparationStatus = { state: "preparing", reason: null, doneBytes: null, totalBytes: null, retryAt: null };

export class Preparations {
  readonly #options: PreparationsOptions;
  readonly #status: Record<Role, PreparationStatus> = { student: UNKNOWN, talker: UNKNOWN };
  readonly #prepared: Partial<Record<Role, Prepared>> = {};
  readonly #turn = new DownloadTurn();
  readonly #stopped = new AbortController();
  #hurry = new AbortController();
  #running: Promise<unknown> = Promise.resolve();

  constructor(options: PreparationsOptions) {
    this.#options = options;
    for (const role of ROLES) this.#status[role] = { ...UNKNOWN, reason: `preparing the ${ROLE_NAMES[role]}` };
  }

  start(): void {
    this.#running = Promise.all(ROLES.map((role) => this.#keepReady(role)));
  }

  /** Resolves when nothing is being fetched any more; what was fetched is kept. */
  async stop(): Promise<void> {
    this.#stopped.abort(new Error("the worker stops"));
    this.#hurry.abort();
    for (const role of ROLES) this.#prepared[role]?.outdated();
    await this.#running;
  }

  status(role: Role): PreparationStatus {
    return this.#status[role];
  }

  isReady(role: Role): boolean {
    return this.#status[role].state === "ready";
  }

  /** What a load of the role's model reads; empty while it is not ready. */
  files(role: Role): string[] {
    return this.#prepared[role]?.files ?? [];
  }

  /** Whether the model can be started now, by a look at its files. If not, its preparation has begun anew. */
  async confirm(role: Role): Promise<boolean> {
    const prepared = this.#prepared[role];
    if (prepared === undefined) return false;
    if ((await fingerprintOf(prepared.files)) === prepared.fingerprint) return true;
    delete this.#prepared[role];
    this.#options.log.warn({ role, files: prepared.files }, "the model's files have changed since they were prepared");
    this.#set(role, { ...UNKNOWN, reason: `preparing the ${ROLE_NAMES[role]} anew: its files have changed` });
    prepared.outdated();
    return false;
  }

  /** Since when (epoch milliseconds) a job has waited for the role; null: none does. Whose jobs wait is downloaded first. */
  wanted(role: Role, since: number | null): void {
    this.#turn.wanted(role, since);
  }

  /** What has failed is tried again at once. */
  retry(): void {
    this.#hurry.abort();
    this.#hurry = new AbortController();
  }

  async #keepReady(role: Role): Promise<void> {
    let failures = 0;
    while (!this.#stopped.signal.aborted) {
      const attempt = this.#turn.attempt(role, this.#stopped.signal);
      try {
        const files = await this.#prepare(role, attempt.signal, () => attempt.turn());
        attempt.end();
        failures = 0;
        await new Promise<void>((outdated) => {
          this.#prepared[role] = { ...files, outdated };
          this.#set(role, { state: "ready", reason: null, doneBytes: null, totalBytes: null, retryAt: null });
          if (this.#stopped.signal.aborted) outdated();
        });
      } catch (error) {
        attempt.end();
        if (this.#stopped.signal.aborted || attempt.yielded) continue;
        failures++;
        const backoffMs = Math.min(BACKOFF_MS * 2 ** (failures - 1), BACKOFF_CAP_MS);
        const { message } = error as Error;
        this.#set(role, { state: "failed", reason: message, doneBytes: null, totalBytes: null, retryAt: Date.now() + backoffMs });
        await delay(backoffMs, undefined, { signal: this.#hurry.signal }).catch(() => {});
      }
    }
  }

  async #prepare(role: Role, signal: AbortSignal, turn: () => Promise<void>): Promise<Omit<Prepared, "outdated">> {
    const { profiles, log } = this.#options;
    const profile = profiles[role];
    let loggedAt = Date.now();
    const { files } = await this.#options.createEngine(profile).prepare(profile, {
      signal,
      onProgress: (progress) => {
        const { doneBytes, totalBytes } = progress;
        const reason = reasonOf(role, progress);
        this.#set(role, { state: "preparing", reason, doneBytes, totalBytes, retryAt: null });
        if (Date.now() - loggedAt < LOGGED_EVERY_MS) return;
        loggedAt = Date.now();
        log.info({ role, model: profile.model, doneBytes, totalBytes }, reason);
      },
      downloadTurn: () => {
        const other = this.#turn.holder;
        if (other !== null && other !== role) {
          const reason = `the ${ROLE_NAMES[role]}'s download begins after the ${ROLE_NAMES[other]}'s`;
          this.#set(role, { ...UNKNOWN, reason });
        }
        return turn();
      },
    });
    return { files, fingerprint: await fingerprintOf(files) };
  }

  #set(role: Role, status: PreparationStatus): void {
    const before = this.#status[role];
    this.#status[role] = status;
    if (before.state === status.state && (status.state !== "failed" || before.reason === status.reason)) return;
    const { profiles, onChange, log } = this.#options;
    const { model } = profiles[role];
    if (status.state === "ready") log.info({ role, model }, `the ${ROLE_NAMES[role]} can be started`);
    if (status.state === "failed")
      log.warn({ role, model, reason: status.reason }, `the ${ROLE_NAMES[role]} can't be had; it is tried again`);
    onChange(role, status);
  }
}

/** "downloading the Talker, 34 %": how far a preparation is, for people. */
function reasonOf(role: Role, { doing, doneBytes, totalBytes }: PreparationProgress): string {
  const name = ROLE_NAMES[role];
  if (doing === "waiting") return `another process is downloading the ${name}`;
  const what = doing === "downloading" ? `downloading the ${name}` : `checking the ${name}'s file`;
  return totalBytes === null || totalBytes === 0 ? what : `${what}, ${Math.floor((100 * doneBytes) / totalBytes)} %`;
}

/** Size and time of change of each file; a file that is not there changes it, too. */
async function fingerprintOf(files: string[]): Promise<string> {
  const looks = await Promise.all(files.map((file) => stat(file).catch(() => null)));
  return looks.map((look) => (look === null ? "gone" : `${look.size}:${look.mtimeMs}`)).join(" ");
}
