import { type Logger, pino } from "pino";
import { redaction } from "../queues/log-redaction.ts";

/** Runs a command's action and keeps its exit code. */
export type Run = (action: () => Promise<number>) => Promise<void>;

export const EXIT_FAILED = 1;
export const EXIT_USAGE = 2;
export const EXIT_MISSED = 3;

/** Logs go to stderr: stdout is for what a command prints. */
export const logTo = ({ logLevel, logProblems }: { logLevel: string; logProblems?: boolean }): Logger =>
  pino(
    { level: logLevel, base: null, timestamp: pino.stdTimeFunctions.isoTime, formatters: { log: redaction(logProblems === true) } },
    pino.destination({ fd: 2, sync: true }),
  );

export const say = (text: string) => process.stdout.write(text);
