import { RECOMMENDATIONS } from "./recommendations.ts";
import { RISKS } from "./risks.ts";
import type { Rule } from "./rule.ts";
import type { Evidence, Ruled } from "./schema.ts";

/** Risks and recommendations follow from the evidence by the stated rules and by nothing else. */
export function applyRules(evidence: Evidence): { risks: Ruled[]; recommendations: Ruled[] } {
  return { risks: findings(RISKS, evidence), recommendations: findings(RECOMMENDATIONS, evidence) };
}

function findings(rules: readonly Rule[], evidence: Evidence): Ruled[] {
  return rules.flatMap(({ name: rule, condition, find }) =>
    find(evidence).map(({ text, figures, phase }) => ({
      rule,
      condition,
      text,
      figures: figures.map(([name, value, unit]) => ({ name, value, unit })),
      phase: phase ?? null,
    })),
  );
}
