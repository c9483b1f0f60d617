import http from "node:http";
import type { AddressInfo } from "node:net";
import { expect, test } from "vitest";
import { checkWebhookUrl, isPublicAddress, type Resolve, webhookAgent } from "../../api/webhook-address.ts";
import { callWebhook } from "../../api/webhook-call.ts";

test.each([
  "0.0.0.0",
  "10.1.2.3",
  "100.64.0.1",
  "127.0.0.1",
  "127.255.255.255",
  "168.63.129.16",
  "169.254.169.254",
  "172.16.0.1",
  "172.31.255.255",
  "192.0.0.1",
  "192.168.1.1",
  "198.18.0.1",
  "224.0.0.1",
  "255.255.255.255",
  "::",
  "::1",
  "::ffff:8.8.8.8",
  "::ffff:127.0.0.1",
  "64:ff9b::7f00:1",
  "fc00::1",
  "fd00:ec2::254",
  "fe80::1",
  "ff02::1",
  "2001::1",
  "2001:db8::1",
  "2002:7f00:1::",
  "not an address",
])("%s is not public", (address) => {
  expect(isPublicAddress(address)).toBe(false);
});

test.each(["1.1.1.1", "8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "223.255.255.255", "2606:4700::1111", "2a00::1"])(
  "%s is public",
  (address) => {
    expect(isPublicAddress(address)).toBe(true);
  },
);

test.each([
  "",
  "example.org",
  "/relative",
  "ftp://example.org/",
  "file:///etc/passwd",
  "javascript:alert(1)",
  "http://user:secret@example.org/",
  "http://localhost/",
  "http://LOCALHOST./",
  "http://api.localhost/",
  "http://127.1/",
  "http://2130706433/",
  "http://0x7f000001/",
  "http://0177.0.0.1/",
  "http://[::1]/",
  "http://[::ffff:127.0.0.1]/",
  "http://169.254.169.254/latest/meta-data/",
  "http://①②⑦.0.0.1/",
])("%j is refused before anything is looked up, and its secret is not repeated", (url) => {
  expect(() => checkWebhookUrl(url, false)).toThrow(/^webhook.url: expected/);
  expect(() => checkWebhookUrl(url, false)).not.toThrow(/secret/);
});

test.each(["https://example.org/hook?a=b", "http://example.org:8080/", "http://8.8.8.8/", "https://[2606:4700::1111]/"])(
  "%s may be called",
  (url) => {
    expect(() => checkWebhookUrl(url, false)).not.toThrow();
  },
);

test("a name that means this machine, or that changes its mind, reaches nothing", async () => {
  let reached = 0;
  const server = http.createServer((_request, response) => {
    reached++;
    response.end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const call = async (answers: string[][], allowPrivate = false) => {
    let asked = 0;
    const resolve: Resolve = (_name, _options, callback) => {
      const addresses = answers[Math.min(asked++, answers.length - 1)]!;
      callback(
        null,
        addresses.map((address) => ({ address, family: address.includes(":") ? 6 : 4 })),
      );
    };
    const dispatcher = webhookAgent(allowPrivate, 500, resolve);
    const message = { id: "m", url: `http://name.example:${port}/`, body: "{}" };
    const result = await callWebhook(message, { secrets: [Buffer.alloc(24)], allowPrivate, dispatcher, signal: AbortSignal.timeout(1000) });
    await dispatcher.destroy();
    return { ...result, asked };
  };
  try {
    expect(await call([["127.0.0.1"]])).toMatchObject({ status: null, isFinal: true, error: "name.example is not a public address" });
    expect(await call([["8.8.8.8", "127.0.0.1"]])).toMatchObject({ status: null, isFinal: true });
    expect(await call([["::ffff:127.0.0.1"]])).toMatchObject({ status: null, isFinal: true });
    // 192.88.99.1 would not be reached, 8.8.8.8 is not there: the look-up that was checked is the only one.
    expect(await call([["8.8.8.8"], ["127.0.0.1"]])).toMatchObject({ status: null, asked: 1 });
    expect(reached).toBe(0);
    expect(await call([["127.0.0.1"]], true)).toMatchObject({ status: 200, error: null });
  } finally {
    server.close();
  }
});
