import type { z } from "zod";

export type Unit = "milliseconds" | "seconds" | "bytes" | "GiB" | "tokens";

interface Description<V> {
  /** What it does, for people: whole sentences. */
  about: string;
  unit?: Unit;
  /** It stands in no error, log, report or file, and in no environment of a program that doesn't need it. */
  secret?: true;
  /** What counts where nothing is given, in the words of the environment. */
  default?: string | number;
  /** What counts where nothing is given, if no words of the environment stand for it. */
  unset?: V;
  /** What `.env.example` shows instead of the default. */
  example?: string;
}

/** One variable of the environment: how it is read, and what people are told of it. */
export interface Setting<V = unknown> extends Description<V> {
  env: string;
  schema: z.ZodType<V>;
}

/** A setting that has a value also where nothing is given. */
export function setting<V>(
  env: string,
  schema: z.ZodType<V>,
  description: Description<NoInfer<V>> & ({ default: string | number } | { unset: NoInfer<V> }),
): Setting<V> {
  return { env, schema, ...description };
}

/** A setting that is undefined where nothing is given. */
export function optionalSetting<V>(
  env: string,
  schema: z.ZodType<V>,
  description: Omit<Description<V>, "default" | "unset">,
): Setting<V | undefined> {
  return { env, schema, ...description };
}

/** Settings by the fields of the configuration that they become. */
export interface SettingTable {
  readonly [field: string]: Setting | SettingTable;
}

/** What is read by a table: a field that may stay undefined may also be left out. */
export type ValuesOf<T> =
  T extends Setting<infer V>
    ? V
    : { [F in keyof T as undefined extends ValuesOf<T[F]> ? never : F]: ValuesOf<T[F]> } & {
        [F in keyof T as undefined extends ValuesOf<T[F]> ? F : never]?: ValuesOf<T[F]>;
      };

/** A table has no text among its fields. */
const isSetting = (each: Setting | SettingTable): each is Setting => typeof each.env === "string";

/** Every setting of a table, in its order, with the field it becomes. */
export function* settingsOf(table: SettingTable): Generator<{ field: string; setting: Setting }> {
  for (const [field, each] of Object.entries(table)) {
    if (isSetting(each)) yield { field, setting: each };
    else yield* settingsOf(each);
  }
}

type Environment = Record<string, string | undefined>;

/** The values of a table's settings. What is wrong with them is added to `wrong`; if anything is, the values are not to be used. */
export function readSettings<T extends SettingTable>(table: T, env: Environment, wrong: string[]): ValuesOf<T> {
  const entries = Object.entries(table).map(([field, each]): [string, unknown] => [
    field,
    isSetting(each) ? readSetting(each, env, wrong) : readSettings(each, env, wrong),
  ]);
  return Object.fromEntries(entries) as ValuesOf<T>;
}

/** User and password of a URL, be it a valid one or not. */
const USER_INFO = /(?<=:\/\/).*(?=@)/;

/** An empty value counts as unset, so that `NAME=` in a file means the default. */
function readSetting(setting: Setting, env: Environment, wrong: string[]): unknown {
  const given = env[setting.env] || undefined;
  const text = given ?? setting.default;
  // Whoever gets a list may change it.
  if (text === undefined) return structuredClone(setting.unset);
  const { data, error } = setting.schema.safeParse(String(text));
  const came = setting.secret ? "a value that is not shown" : JSON.stringify(given?.replace(USER_INFO, "…"));
  for (const { message } of error?.issues ?? []) wrong.push(`${setting.env}: ${message}; got ${came}`);
  return data;
}
