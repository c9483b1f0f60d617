import type { RequestHandler } from "express";
import { BOARD_PATH } from "../access.ts";

const NOTHING = "default-src 'none'; frame-ancestors 'none'";

/** For answers that are data: nothing in them may run or load anything. */
const DATA_POLICY = `${NOTHING}; base-uri 'none'; form-action 'none'`;

/** For pages of ours: scripts, styles and pictures from here only, nothing inline; `nonce` lets one inline script and style of the page run. */
export function pagePolicy(nonce?: string): string {
  const own = nonce === undefined ? "'self'" : `'self' 'nonce-${nonce}'`;
  return `${NOTHING}; base-uri 'none'; script-src ${own}; style-src ${own}; img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'self'`;
}

/** Bull Board styles its elements inline. Its fonts from elsewhere are not loaded: the browser's own do. */
const BOARD_POLICY = `${NOTHING}; base-uri 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; connect-src 'self'; form-action 'self'`;

/** Set before anything else answers, so that every answer has them. A page replaces its Content-Security-Policy by `pagePolicy()`. */
export const securityHeaders: RequestHandler = (request, response, next) => {
  const isBoard = request.path.toLowerCase().startsWith(BOARD_PATH);
  response.set({
    "Content-Security-Policy": isBoard ? BOARD_POLICY : DATA_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
  });
  // The board's scripts and pictures bring their own.
  if (!isBoard || !request.path.includes("/static/")) response.set("Cache-Control", "no-store");
  next();
};
