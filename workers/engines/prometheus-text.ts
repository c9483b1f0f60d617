/** The sum of a metric's samples over all its labels in a Prometheus text; null when there are none. */
export function metricSum(text: string, name: string): number | null {
  const samples = text.split("\n").filter((line) => line.startsWith(name) && /^[{ ]/.test(line.slice(name.length)));
  if (samples.length === 0) return null;
  return samples.reduce((sum, line) => sum + Number(/\}? (\S+)( \d+)?$/.exec(line.slice(name.length))?.[1] ?? Number.NaN), 0);
}
