/** The urls of REDIS_URL: several name nodes of a cluster. A comma may also stand in a password. */
export function splitRedisUrls(text: string): string[] {
  return text.split(/\s*,\s*(?=rediss?:\/\/)/);
}

/** Whether `text` is one url of a Redis, or several of one kind without a database number. */
export function areRedisUrls(text: string): boolean {
  const texts = splitRedisUrls(text);
  if (!texts.every((each) => /^rediss?:\/\//.test(each) && URL.canParse(each))) return false;
  const urls = texts.map((each) => new URL(each));
  // `redis://one,two` is a url too, of a host with a comma in its name.
  if (urls.some((url) => url.hostname.includes(","))) return false;
  return urls.length === 1 || urls.every((url) => url.protocol === urls[0]!.protocol && /^\/?$/.test(url.pathname));
}
