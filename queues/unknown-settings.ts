import { hasRolePrefix, SETTING_NAMES } from "./settings.ts";

/** Names that are no setting, but may have been meant as one. */

export interface UnknownSetting {
  name: string;
  /** The setting that it resembles. */
  meant: string | undefined;
  /** Its prefix is ours: nobody else reads it. */
  isReserved: boolean;
}

/** A shorter name resembles too many of other programs. */
const MIN_LENGTH = 6;
/** A name so long may differ in two letters, a shorter one in one. */
const LONG_LENGTH = 12;
/** Of a name with our prefix: the share of the letters after it that may differ. */
const MAX_EDITED_SHARE = 1 / 3;

/** What Kubernetes and Docker set for a service called `student` or `student-…`, and the values of such a `…_PORT`. */
const SERVICE_NAME = /_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$/;
const SERVICE_ADDRESS = /^(tcp|udp|sctp):\/\//;

/** The names in `env` that are set and no settings, but have a prefix of ours or resemble a setting. */
export function unknownSettings(env: Record<string, string | undefined>): UnknownSetting[] {
  return Object.entries(env).flatMap(([name, value]): UnknownSetting[] => {
    if (!value || SETTING_NAMES.includes(name) || !/^\w+$/.test(name)) return [];
    if (!hasRolePrefix(name)) {
      const meant = resembled(name.toUpperCase());
      return meant === undefined ? [] : [{ name, meant, isReserved: false }];
    }
    const isService = SERVICE_NAME.test(name) || (name.endsWith("_PORT") && SERVICE_ADDRESS.test(value));
    return isService ? [] : [{ name, meant: nearestOfRole(name), isReserved: true }];
  });
}

/** One line for people. */
export function describeUnknown({ name, meant }: UnknownSetting): string {
  if (meant !== undefined) return `unknown setting ${name}; did you mean ${meant}?`;
  return `unknown setting ${name}; names with this beginning are settings of mathllm, and this is none: correct or unset it`;
}

function resembled(name: string): string | undefined {
  if (name.length < MIN_LENGTH) return undefined;
  const mostEdits = name.length < LONG_LENGTH ? 1 : 2;
  const alike = SETTING_NAMES.filter(({ length }) => length >= MIN_LENGTH && Math.abs(length - name.length) <= mostEdits);
  return nearest(name, alike, () => mostEdits);
}

function nearestOfRole(name: string): string | undefined {
  const prefix = name.slice(0, name.indexOf("_") + 1);
  const ofRole = SETTING_NAMES.filter((setting) => setting.startsWith(prefix));
  return nearest(name, ofRole, ({ length }) => MAX_EDITED_SHARE * (Math.max(name.length, length) - prefix.length));
}

/** Of several at the same distance the one of the nearest length: MODLE is rather MODEL than MODE. */
function nearest(name: string, settings: string[], mostEdits: (setting: string) => number): string | undefined {
  const near = settings
    .map((setting) => ({ setting, edits: editsBetween(name, setting), longer: Math.abs(setting.length - name.length) }))
    .filter(({ setting, edits }) => edits <= mostEdits(setting));
  return near.sort((one, other) => one.edits - other.edits || one.longer - other.longer)[0]?.setting;
}

/** The fewest letters to add, leave out, exchange, or swap with their neighbour that make `other` of `one` (optimal string alignment). */
function editsBetween(one: string, other: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: other.length + 1 }, (_, column) => column);
  for (let row = 1; row <= one.length; row++) {
    const current = [row];
    for (let column = 1; column <= other.length; column++) {
      const exchanged = last[column - 1]! + (one[row - 1] === other[column - 1] ? 0 : 1);
      const isSwapped = row > 1 && column > 1 && one[row - 1] === other[column - 2] && one[row - 2] === other[column - 1];
      const swapped = isSwapped ? beforeLast[column - 2]! + 1 : Number.POSITIVE_INFINITY;
      current.push(Math.min(last[column]! + 1, current[column - 1]! + 1, exchanged, swapped));
    }
    beforeLast = last;
    last = current;
  }
  return last[other.length]!;
}
