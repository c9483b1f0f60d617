import { InvalidArgumentError } from "commander";
import type { Role } from "../queues/names.ts";
import { parseMemory } from "../workers/gpu/plan.ts";

/** Readers of options' texts; each throws what commander shows as wrong usage. */

export function number(low: number, high: number) {
  return (text: string): number => {
    const value = Number(text);
    if (text.trim() === "" || !(value >= low && value <= high)) throw new InvalidArgumentError(`Expected a number from ${low} to ${high}.`);
    return value;
  };
}

export function wholeNumber(low: number, high: number) {
  return (text: string): number => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < low || value > high)
      throw new InvalidArgumentError(`Expected a whole number from ${low} to ${high}.`);
    return value;
  };
}

/** One number for both models, or `student=…,talker=…`. */
export function numberPerModel(low: number, high: number) {
  const one = number(low, high);
  return (text: string): number | Record<Role, number> => {
    if (!text.includes("=")) return one(text);
    const parts = text.split(",").map((part) => part.split("=").map((word) => word.trim()));
    const of = (role: Role) => parts.find(([name, ...rest]) => name === role && rest.length === 1)?.[1];
    const [student, talker] = [of("student"), of("talker")];
    if (parts.length !== 2 || student === undefined || talker === undefined)
      throw new InvalidArgumentError("Expected one number, or student=NUMBER,talker=NUMBER.");
    return { student: one(student), talker: one(talker) };
  };
}

export function oneOf<T extends string>(choices: readonly T[]) {
  return (text: string): T => {
    if (!choices.includes(text as T)) throw new InvalidArgumentError(`Expected one of ${choices.join(", ")}.`);
    return text as T;
  };
}

export function memorySize(text: string): number {
  const bytes = parseMemory(text);
  if (bytes === null) throw new InvalidArgumentError("Expected an amount of memory such as 12GiB, 12227MiB or bytes.");
  return bytes;
}

export const URL_OPTION = ["--url <url>", "the API's address (default: from HOST and PORT)"] as const;
