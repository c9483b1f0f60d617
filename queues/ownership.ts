import { accessSync, chmodSync, constants, lstatSync, mkdirSync } from "node:fs";
import path from "node:path";

/**
 * What other users of this machine can change is neither obeyed nor run. Where there are no user ids (Windows) everything counts as ours.
 * No package is loaded here: the command line asks before it loads anything else.
 */

const WRITABLE_BY_GROUP = 0o020;
const WRITABLE_BY_ALL = 0o002;
/** In a folder with this bit others can't replace what is ours. */
const STICKY = 0o1000;
const PRIVATE = 0o700;

const uid = () => process.getuid?.();

/**
 * Which other user the file or folder belongs to, in words that go on after its name; null: root or us. A symbolic link is looked at itself.
 * Throws what `lstat` throws.
 */
export function whoElseOwns(file: string): string | null {
  const { uid: owner } = lstatSync(file);
  return uid() === undefined || owner === 0 || owner === uid() ? null : `belongs to another user (uid ${owner}, not ${uid()})`;
}

/** The same of who can change it; null: only root and we can, or our own group, which on many systems holds nobody else. */
export function whoElseChanges(file: string): string | null {
  const owner = whoElseOwns(file);
  const stats = lstatSync(file);
  if (owner !== null || uid() === undefined) return owner;
  if (stats.isSymbolicLink() || (stats.isDirectory() && (stats.mode & STICKY) !== 0)) return null;
  const mode = `mode ${(stats.mode & 0o7777).toString(8).padStart(4, "0")}`;
  if ((stats.mode & WRITABLE_BY_ALL) !== 0) return `can be changed by every user (${mode})`;
  if ((stats.mode & WRITABLE_BY_GROUP) !== 0 && stats.gid !== process.getgid!())
    return `can be changed by the group ${stats.gid} (${mode})`;
  return null;
}

/** Whether the folder is there, no link, ours, and writable by nobody else. */
export function isOwnFolder(folder: string): boolean {
  const stats = lstatSync(folder, { throwIfNoEntry: false });
  if (stats === undefined || !stats.isDirectory()) return false;
  return uid() === undefined || (stats.uid === uid() && (stats.mode & (WRITABLE_BY_GROUP | WRITABLE_BY_ALL)) === 0);
}

/**
 * The folder `name` of our cache, `$XDG_CACHE_HOME/mathllm` or `~/.cache/mathllm`, made with mode 0700 if need be. undefined: there is none
 * that is surely ours, or it can't be written.
 */
export function ownCacheFolder(name: string, env: NodeJS.ProcessEnv = process.env): string | undefined {
  const { XDG_CACHE_HOME = "", HOME = "" } = env;
  const base = path.isAbsolute(XDG_CACHE_HOME) ? XDG_CACHE_HOME : path.join(HOME, ".cache");
  if (!path.isAbsolute(base)) return undefined;
  const cache = path.join(base, "mathllm");
  const folder = path.join(cache, name);
  try {
    mkdirSync(base, { recursive: true, mode: PRIVATE });
    if (whoElseChanges(base) !== null) return undefined;
    mkdirSync(cache, { recursive: true, mode: PRIVATE });
    const stats = lstatSync(cache);
    // An umask may have left it open to others. What they may have put inside is theirs, and is not taken below.
    if (stats.isDirectory() && stats.uid === uid()) chmodSync(cache, PRIVATE);
    if (!isOwnFolder(cache)) return undefined;
    mkdirSync(folder, { recursive: true, mode: PRIVATE });
    accessSync(folder, constants.W_OK);
    return isOwnFolder(folder) ? folder : undefined;
  } catch {
    return undefined;
  }
}
