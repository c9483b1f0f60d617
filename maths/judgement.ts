export interface Judgement {
  /** `undecided` is never to be counted as right. */
  verdict: "equal" | "different" | "undecided";
  /** One sentence for a reader, without the answers' own text. */
  reason: string;
}

export const equal = (reason: string): Judgement => ({ verdict: "equal", reason });
export const different = (reason: string): Judgement => ({ verdict: "different", reason });
export const undecided = (reason: string): Judgement => ({ verdict: "undecided", reason });
