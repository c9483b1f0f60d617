/** Random times of a given mean; `cv` is the coefficient of variation, above 0. */
export type TimeDraw = (meanMs: number) => number;

export function exponentialDraw(random: () => number): TimeDraw {
  return (meanMs) => -meanMs * Math.log(1 - random());
}

export function lognormalDraw(cv: number, random: () => number): TimeDraw {
  const variance = Math.log(1 + cv * cv);
  return (meanMs) => meanMs * Math.exp(Math.sqrt(variance) * normal(random) - variance / 2);
}

/** Gamma of shape 1/cv²: Erlang-k for cv = 1/√k. By Marsaglia and Tsang's method of 2000. */
export function gammaDraw(cv: number, random: () => number): TimeDraw {
  const shape = 1 / (cv * cv);
  // The method wants a shape of at least 1: a smaller one is one more, times a power of a uniform number.
  const d = (shape < 1 ? shape + 1 : shape) - 1 / 3;
  const c = 1 / Math.sqrt(9 * d);
  const atLeastOne = (): number => {
    for (;;) {
      const x = normal(random);
      const v = (1 + c * x) ** 3;
      if (v > 0 && Math.log(1 - random()) < x ** 2 / 2 + d - d * v + d * Math.log(v)) return d * v;
    }
  };
  return (meanMs) => (meanMs / shape) * atLeastOne() * (shape < 1 ? (1 - random()) ** (1 / shape) : 1);
}

/** Box and Muller's transform: two uniform numbers give a normal one. */
function normal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}
