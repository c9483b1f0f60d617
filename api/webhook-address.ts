import dns from "node:dns";
import net, { type LookupFunction } from "node:net";
import { Agent } from "undici";
import { MathllmError } from "../queues/errors.ts";

/** Special purpose ranges of IPv4: this host, private, shared, loopback, Azure's own host, link-local (cloud metadata), documentation, benchmarks, multicast, reserved. */
const SPECIAL_IPV4 = [
  "0.0.0.0/8",
  "10.0.0.0/8",
  "100.64.0.0/10",
  "127.0.0.0/8",
  "168.63.129.16/32",
  "169.254.0.0/16",
  "172.16.0.0/12",
  "192.0.0.0/24",
  "192.0.2.0/24",
  "192.88.99.0/24",
  "192.168.0.0/16",
  "198.18.0.0/15",
  "198.51.100.0/24",
  "203.0.113.0/24",
  "224.0.0.0/3",
];
/** Public IPv6 is 2000::/3; in it protocol assignments with Teredo, documentation, 6to4 (which holds an IPv4 address) and more documentation. */
const GLOBAL_IPV6 = "2000::/3";
const SPECIAL_IPV6 = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];

const special = blockList(SPECIAL_IPV4, "ipv4", blockList(SPECIAL_IPV6, "ipv6"));
const global = blockList([GLOBAL_IPV6], "ipv6");

/** Whether an address is one of the open internet. */
export function isPublicAddress(address: string): boolean {
  if (net.isIPv4(address)) return !special.check(address, "ipv4");
  return net.isIPv6(address) && global.check(address, "ipv6") && !special.check(address, "ipv6");
}

/** What `dns.lookup` does with `all`. */
export type Resolve = (
  hostname: string,
  options: dns.LookupAllOptions,
  callback: (error: NodeJS.ErrnoException | null, addresses: dns.LookupAddress[]) => void,
) => void;

/**
 * Checks what can be known before the name is looked up. Throws `invalid-request` for what is no http(s) address, carries a name and password,
 * or names this machine or a private address.
 */
export function checkWebhookUrl(text: string, allowPrivate: boolean): void {
  const wrong = (came: string) =>
    new MathllmError("invalid-request", `webhook.url: expected an http or https address of a public host; got ${came}.`);
  if (!URL.canParse(text)) throw wrong("what is no address");
  const { protocol, username, password, hostname } = new URL(text);
  if (protocol !== "http:" && protocol !== "https:") throw wrong(JSON.stringify(protocol));
  if (username !== "" || password !== "") throw wrong("a name or password in it");
  if (!allowPrivate && namesPrivateHost(hostname))
    throw wrong(`${JSON.stringify(hostname.slice(0, 100))}, which is not public (WEBHOOK_ALLOW_PRIVATE=1 allows it)`);
}

function namesPrivateHost(hostname: string): boolean {
  const literal = hostname.replace(/^\[(.*)\]$/, "$1");
  if (net.isIP(literal) !== 0) return !isPublicAddress(literal);
  return /^(.*\.)?localhost\.?$/i.test(hostname);
}

/**
 * Connects only to public addresses, unless `allowPrivate`: a name is looked up once, and the connection goes to the very addresses that
 * were checked, so that a name that changes its mind meanwhile gains nothing. One private address among them refuses them all.
 */
export function webhookAgent(allowPrivate: boolean, timeoutMs: number, resolve: Resolve = dns.lookup): Agent {
  const lookup: LookupFunction = (hostname, options, callback) => {
    resolve(hostname, { ...options, all: true }, (error, addresses) => {
      if (error !== null) return callback(error, "");
      if (!allowPrivate && !addresses.every(({ address }) => isPublicAddress(address)))
        return callback(new RefusedAddress(`${hostname} is not a public address`), "");
      if (options.all === true) callback(null, addresses);
      else callback(null, addresses[0]!.address, addresses[0]!.family);
    });
  };
  return new Agent({ connect: { lookup, timeout: timeoutMs }, headersTimeout: timeoutMs, bodyTimeout: timeoutMs, connections: 8 });
}

/** Trying again would not help. */
export class RefusedAddress extends Error {}

function blockList(ranges: string[], family: "ipv4" | "ipv6", list = new net.BlockList()): net.BlockList {
  for (const range of ranges) {
    const [network = "", bits] = range.split("/");
    list.addSubnet(network, Number(bits), family);
  }
  return list;
}
