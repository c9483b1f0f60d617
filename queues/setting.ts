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

/** User and password of a URL, be it a valid one or not. */
const USER_INFO = /(?<=:\/\/).*(?=@)/;

/** One variable of the environment: how it is read, and what people are told of it. */
export class Setting<V = unknown> implements Description<V> {
  readonly env: string;
  readonly schema: z.ZodType<V>;
  readonly about: string;
  readonly unit: Unit | undefined;
  readonly secret: true | undefined;
  readonly default: string | number | undefined;
  readonly unset: V | undefined;
  readonly example: string | undefined;

  constructor(env: string, schema: z.ZodType<V>, description: Description<V>) {
    this.env = env;
    this.schema = schema;
    this.about = description.about;
    this.unit = description.unit;
    this.secret = description.secret;
    this.default = description.default;
    this.unset = description.unset;
    this.example = description.example;
  }

  /** An empty value counts as unset, so that `NAME=` in a file means the default. `wrong`: what was expected and what came, a line each. */
  read(env: Record<string, string | undefined>): { value: V | undefined; wrong: string[] } {
    const given = env[this.env] || undefined;
    const text = given ?? this.default;
    if (text === undefined) return { value: this.unset, wrong: [] };
    const { data, error } = this.schema.safeParse(String(text));
    const came = this.secret ? "a value that is not shown" : JSON.stringify(given?.replace(USER_INFO, "…"));
    return { value: data, wrong: (error?.issues ?? []).map(({ message }) => `${this.env}: ${message}; got ${came}`) };
  }
}

/** A setting that has a value also where nothing is given. */
export function setting<S extends z.ZodType>(
  env: string,
  schema: S,
  description: Description<z.output<S>> & ({ default: string | number } | { unset: z.output<S> }),
): Setting<z.output<S>> {
  return new Setting(env, schema as z.ZodType<z.output<S>>, description);
}

/** A setting that is undefined where nothing is given. */
export function optionalSetting<S extends z.ZodType>(
  env: string,
  schema: S,
  description: Omit<Description<z.output<S>>, "default" | "unset">,
): Setting<z.output<S> | undefined> {
  return new Setting(env, schema as z.ZodType<z.output<S> | undefined>, description);
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

/** Every setting of a table, in its order, with the field it becomes. */
export function* settingsOf(table: SettingTable): Generator<{ field: string; setting: Setting }> {
  for (const [field, each] of Object.entries(table)) {
    if (each instanceof Setting) yield { field, setting: each };
    else yield* settingsOf(each);
  }
}

/** The values of a table's settings. What is wrong with them is added to `wrong`; if anything is, the values are not to be used. */
export function readSettings<T extends SettingTable>(table: T, env: Record<string, string | undefined>, wrong: string[]): ValuesOf<T> {
  const entries = Object.entries(table).map(([field, each]): [string, unknown] => {
    if (!(each instanceof Setting)) return [field, readSettings(each, env, wrong)];
    const read = each.read(env);
    wrong.push(...read.wrong);
    return [field, read.value];
  });
  return Object.fromEntries(entries) as ValuesOf<T>;
}
