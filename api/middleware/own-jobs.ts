import type { RequestHandler } from "express";
import { hasRole } from "../../queues/api-keys.ts";
import type { JobLookup } from "../job-lookup.ts";
import { unknownJob } from "../job-lookup.ts";
import { keyOf } from "./authenticate.ts";

/**
 * For addresses below `/jobs/:id`: a job that another key handed in, or nobody's, does not exist for this one, unless it is an admin's. An
 * answer from the cache belongs to nobody and is shown to every key.
 */
export function ownJobs(lookup: JobLookup): RequestHandler<{ id: string }> {
  return async (request, response, next) => {
    const key = keyOf(response);
    if (key === null || hasRole(key, "admin") || (await lookup.isVisibleTo(key.name, request.params.id))) return next();
    throw unknownJob();
  };
}
