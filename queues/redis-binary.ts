import { execFile } from "node:child_process";
import { chmod, copyFile, mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { MathllmError } from "./errors.ts";
import { isOwnFolder, ownCacheFolder } from "./ownership.ts";
import { withoutSecrets } from "./settings.ts";

const run = promisify(execFile);

export interface RedisBinary {
  path: string;
  /** Folder of shared libraries that this machine lacks; goes into LD_LIBRARY_PATH. */
  libraryPath?: string;
  source: "env" | "path" | "cache" | "package" | "compiled";
  version: string;
}

export interface FindRedisOptions {
  env: NodeJS.ProcessEnv;
  log: (line: string) => void;
}

/** The first Redis with all that BullMQ uses; every Valkey has it. */
const MIN_VERSION = "6.2";
const VERSION_TIMEOUT_MS = 10_000;
const PACKAGE_TIMEOUT_MS = 120_000;
const COMPILE_TIMEOUT_MS = 600_000;

/**
 * Finds a redis-server or valkey-server. The first rung that works is taken:
 *   REDIS_SERVER_BIN; the PATH; the cached copy; unpacked from the distribution's own package into the cache, without root and
 *   without installing anything; compiled by redis-memory-server into the cache.
 * Throws `redis-binary-missing` with why each rung failed and the ways to get one.
 */
export async function findRedisBinary({ env, log }: FindRedisOptions): Promise<RedisBinary> {
  const failures: string[] = [];
  if (env.REDIS_SERVER_BIN) {
    try {
      return await checked(env.REDIS_SERVER_BIN, "env");
    } catch (error) {
      throw new MathllmError(
        "redis-binary-missing",
        `REDIS_SERVER_BIN: expected a redis-server or valkey-server, version ${MIN_VERSION} or newer, at ${env.REDIS_SERVER_BIN}; ${(error as Error).message}.`,
      );
    }
  }
  const cache = await cacheFolder(env);
  const rungs: [string, () => Promise<RedisBinary>][] = [
    ["on the PATH", () => onPath(env)],
    ["cached copy", () => checked(path.join(cache, "bin", "redis-server"), "cache", path.join(cache, "lib"))],
    ["distribution's package", () => fromPackage(cache, env, log)],
    ["compiled", () => compiled(cache, env, log)],
  ];
  for (const [name, rung] of rungs) {
    try {
      return await rung();
    } catch (error) {
      failures.push(`${name}: ${(error as Error).message.split("\n")[0]}`);
    }
  }
  throw new MathllmError(
    "redis-binary-missing",
    `No Redis server was found. Tried: ${failures.join("; ")}.\nInstall redis-server or valkey-server with the system's package manager, set REDIS_SERVER_BIN to one, or set REDIS_URL to a running server.`,
  );
}

/** Where a found binary is kept: the user's cache, or, where that can't be written, a folder in the temporary one that is surely ours. */
async function cacheFolder(env: NodeJS.ProcessEnv): Promise<string> {
  const folder = ownCacheFolder("redis", env);
  if (folder !== undefined) return folder;
  const own = path.join(os.tmpdir(), `mathllm-cache-${os.userInfo().uid}`);
  await mkdir(own, { recursive: true, mode: 0o700 });
  // Another user may have made it first, with a binary of theirs inside.
  return path.join(isOwnFolder(own) ? own : await mkdtemp(`${own}-`), "redis");
}

/** Takes a binary only when it runs and is new enough. */
async function checked(binary: string, source: RedisBinary["source"], libraryPath?: string): Promise<RedisBinary> {
  const { stdout } = await run(binary, ["--version"], { timeout: VERSION_TIMEOUT_MS, env: libraryEnv(libraryPath) });
  const version = /v=(\d+[\d.]*)/.exec(stdout)?.[1];
  if (version === undefined) throw new Error(`it does not say its version, but ${JSON.stringify(stdout.slice(0, 60))}`);
  if (version.localeCompare(MIN_VERSION, "en", { numeric: true }) < 0) throw new Error(`version ${version} is too old`);
  return { path: binary, libraryPath, source, version };
}

/** The environment for a binary, maybe with libraries of its own: a Redis server needs none of our secrets. */
export function libraryEnv(libraryPath: string | undefined): NodeJS.ProcessEnv {
  const env = withoutSecrets(process.env);
  return libraryPath === undefined ? env : { ...env, LD_LIBRARY_PATH: libraryPath };
}

async function onPath(env: NodeJS.ProcessEnv): Promise<RedisBinary> {
  for (const name of ["redis-server", "valkey-server"]) {
    for (const folder of (env.PATH ?? "").split(path.delimiter).filter(Boolean)) {
      try {
        return await checked(path.join(folder, name), "path");
      } catch {
        // Not here, or not usable: the next folder may have a better one.
      }
    }
  }
  throw new Error("neither redis-server nor valkey-server");
}

/** apt with every state folder private, so that an ordinary user can fetch a package and nothing of the system changes. */
async function fromPackage(cache: string, env: NodeJS.ProcessEnv, log: (line: string) => void): Promise<RedisBinary> {
  const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-redis-"));
  try {
    log("fetching redis-server from the distribution's packages, once");
    await Promise.all(
      ["state/lists/partial", "cache/archives/partial", "root"].map((name) => mkdir(path.join(folder, name), { recursive: true })),
    );
    const options = Object.entries({
      "Dir::State": path.join(folder, "state"),
      "Dir::State::lists": path.join(folder, "state", "lists"),
      "Dir::State::status": "/dev/null",
      "Dir::Cache": path.join(folder, "cache"),
      "APT::Sandbox::User": "",
    }).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
    // Its words are read below, so they have to be English.
    const english = { ...env, LC_ALL: "C" };
    const apt = (...args: string[]) =>
      run(args[0]!, [...options, ...args.slice(1)], { cwd: folder, env: english, timeout: PACKAGE_TIMEOUT_MS });
    await apt("apt-get", "-q", "update");
    // The binary moved between packages over the releases; redis-tools holds it on Debian 12.
    await apt("apt-get", "-q", "download", "redis-server", "redis-tools");
    const root = path.join(folder, "root");
    await unpackAll(folder, root, env);
    const binary = path.join(root, "usr", "bin", "redis-server");
    const { stdout } = await run("ldd", [binary], { env });
    if (stdout.includes("not found")) {
      const { stdout: depends } = await apt("apt-cache", "depends", "redis-server", "redis-tools");
      const libraries = [...depends.matchAll(/^ {2}Depends: (lib\S+)$/gm)].map((match) => match[1]!).filter((name) => name !== "libc6");
      await apt("apt-get", "-q", "download", ...new Set(libraries));
      await unpackAll(folder, root, env);
    }
    return await keep(binary, await librariesBelow(root), cache, "package");
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function unpackAll(folder: string, root: string, env: NodeJS.ProcessEnv): Promise<void> {
  for (const name of await readdir(folder)) {
    if (!name.endsWith(".deb")) continue;
    await run("dpkg-deb", ["-x", path.join(folder, name), root], { env });
    await rm(path.join(folder, name));
  }
}

async function librariesBelow(root: string): Promise<string[]> {
  const entries = await readdir(root, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => /\.so(\.|$)/.test(entry.name)).map((entry) => path.join(entry.parentPath, entry.name));
}

async function compiled(cache: string, env: NodeJS.ProcessEnv, log: (line: string) => void): Promise<RedisBinary> {
  log("compiling a Redis server, once; this takes some minutes");
  const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-redis-"));
  try {
    // In a process of its own: the package logs to the console and has no time-out.
    const script =
      "import('redis-memory-server/lib/util/RedisBinary.js').then(async (m) => process.stdout.write('PATH=' + await m.default.default.getPath({})))";
    const { stdout } = await run(process.execPath, ["-e", script], {
      cwd: path.join(import.meta.dirname, ".."),
      timeout: COMPILE_TIMEOUT_MS,
      env: { ...env, REDISMS_DOWNLOAD_DIR: folder },
    });
    const binary = /PATH=(.+)$/.exec(stdout)?.[1];
    if (binary === undefined) throw new Error("the compiler left no binary");
    return await keep(binary, [], cache, "compiled");
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Moves a copy into the cache in one step: two processes may do this at once, and a broken copy is replaced. */
async function keep(binary: string, libraries: string[], cache: string, source: RedisBinary["source"]): Promise<RedisBinary> {
  await mkdir(path.dirname(cache), { recursive: true });
  const fresh = await mkdtemp(`${cache}-`);
  try {
    await mkdir(path.join(fresh, "bin"));
    await mkdir(path.join(fresh, "lib"));
    await copyFile(binary, path.join(fresh, "bin", "redis-server"));
    await chmod(path.join(fresh, "bin", "redis-server"), 0o755);
    for (const library of libraries) await copyFile(library, path.join(fresh, "lib", path.basename(library)));
    await checked(path.join(fresh, "bin", "redis-server"), source, path.join(fresh, "lib"));
    const replaced = `${fresh}-old`;
    await rename(cache, replaced).catch(() => {});
    await rename(fresh, cache).catch(() => {});
    await rm(replaced, { recursive: true, force: true });
  } finally {
    await rm(fresh, { recursive: true, force: true });
  }
  return checked(path.join(cache, "bin", "redis-server"), source, path.join(cache, "lib"));
}
