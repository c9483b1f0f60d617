import { ApiClient } from "../producers/submit.ts";
import { readConfig } from "../queues/config.ts";

/** The API at `url`, or where HOST and PORT say, asked with API_KEY. */
export function apiAt(url: string | undefined): ApiClient {
  const config = readConfig();
  return new ApiClient(url ?? `http://${config.host}:${config.port}`, config.apiKey);
}
