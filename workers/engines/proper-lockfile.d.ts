/** What we use of the package, which ships without types. */
declare module "proper-lockfile" {
  export interface LockOptions {
    /** Milliseconds after which a lock that was not renewed counts as given up. */
    stale: number;
    /** Milliseconds between two renewals. */
    update: number;
    /** Whether the file itself has to exist. */
    realpath: boolean;
    /** Another process took a lock of ours that had not been renewed in time. */
    onCompromised: (error: Error) => void;
  }
  /** Resolves with its release; rejects with code `ELOCKED` when another has it. */
  export function lock(file: string, options: LockOptions): Promise<() => Promise<void>>;
}
