import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import net, { type AddressInfo } from "node:net";
import { type TestContext, test } from "node:test";
import { inspect } from "node:util";

import { Client, UndecidedError, type ClientOptions, type Identity, type VerifyRequest } from "@keyward/client";

import { patience, revoke, setup } from "./setup.js";

const { secrets } = setup;

/** Serves until the test ends and returns the address. */
async function serve(t: TestContext, handler: http.RequestListener): Promise<string> {
  const server = http.createServer(handler).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => { server.closeAllConnections(); server.close(); });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function closedAddress(): Promise<string> {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return `http://127.0.0.1:${port}`;
}

// V1, V3, V5: every verdict of the real server.
test("V1 verdicts", async (t) => {
  const client = new Client({ addresses: [setup.internal], token: setup.token, timeout: patience });
  const whole: Partial<Identity> = { api_key_id: secrets.live_id, organization_id: secrets.organization, env: "live", key_name: "Till", payments_enabled: true };
  const cases: [name: string, request: VerifyRequest, reason: string, identity?: Partial<Identity>][] = [
    ["valid", { key: secrets.live }, "valid", whole],
    ["valid, live wanted", { key: secrets.live, env: "live", connected_account_id: null }, "valid", whole],
    ["test, payments disabled", { key: secrets.test, env: "test" }, "valid", { organization_id: "org_test", env: "test", payments_enabled: false }],
    ["own child", { key: secrets.live, connected_account_id: secrets.account }, "valid", { ...whole, connected_account_id: secrets.account }],
    ["of a revision that is there", { key: secrets.live, min_revision: 1 }, "valid", whole],
    ["foreign child", { key: secrets.live, connected_account_id: secrets.foreign_account }, "connected_account_forbidden"],
    ["no account's form", { key: secrets.live, connected_account_id: "acct 1" }, "connected_account_forbidden"],
    ["no account's form and unknown", { key: secrets.unknown, connected_account_id: "acct 1" }, "unknown"],
    ["other environment", { key: secrets.live, env: "test" }, "environment_mismatch"],
    ["revoked", { key: secrets.revoked }, "revoked", { organization_id: "org_gone" }],
    ["expired", { key: secrets.expired }, "expired"],
    ["unknown", { key: secrets.unknown }, "unknown", {}],
    ["inactive organization", { key: secrets.inactive }, "organization_inactive"],
    ["malformed", { key: secrets.malformed }, "malformed"],
    ["empty", { key: "" }, "malformed"],
    ["a space", { key: secrets.live + " " }, "malformed"],
    ["long", { key: secrets.live.repeat(100) }, "malformed"],
  ];
  for (const [name, request, reason, identity = {}] of cases) {
    await t.test(name, async () => {
      const verdict = await client.verify(request);
      assert.equal(verdict.reason, reason);
      assert.equal(verdict.valid, reason === "valid");
      assert.deepEqual({ ...verdict.identity, ...identity }, verdict.identity);
      if (verdict.valid) {
        assert.ok(Date.parse(verdict.identity.expires_at ?? "") > Date.now());
      }
    });
  }
});

// C23: refused from the moment revoke has answered.
test("C23 revoke", async () => {
  const client = new Client({ addresses: [setup.internal], token: setup.token, timeout: patience });
  const doomed = setup.doomed[0]!;
  assert.equal((await client.verify({ key: doomed.key })).reason, "valid");
  await revoke(doomed);
  assert.equal((await client.verify({ key: doomed.key })).reason, "revoked");
});

test("what is asked wrongly is a TypeError, and nobody is asked", async () => {
  const client = new Client({ fetch: () => assert.fail("asked") });
  for (const wrong of [{ env: "prod" }, { env: "" }, { min_revision: -1 }, { min_revision: 1.5 }, { min_revision: Number.NaN }]) {
    await assert.rejects(client.verify({ key: secrets.live, ...wrong } as VerifyRequest), TypeError);
  }
});

test("wrong options are a TypeError that does not echo them", () => {
  const wrong: ClientOptions[] = [
    ...["127.0.0.1:8081", "ftp://127.0.0.1", "http://", "http://h/v1/hunter2", "http://u:hunter2@h", "http://h?hunter2", "http://h#hunter2", "http://h\nhunter2", ""].map((a) => ({ addresses: ["http://good", a] })),
    { token: "hunter2 hunter2" }, { token: "hunter2\r\nX: y" }, { timeout: 0 }, { timeout: -1 }, { timeout: Number.NaN }, { timeout: Infinity },
  ];
  for (const options of wrong) {
    assert.throws(() => new Client(options), (error) => error instanceof TypeError && !error.message.includes("hunter2"), inspect(options));
  }
  for (const address of ["http://127.0.0.1:8081", "https://keyward.internal:8081/", "http://[::1]:8081"]) {
    new Client({ addresses: [address] });
  }
});

/** Fails when an error, or anything that hangs on it, shows the secret or the token. */
function assertSilent(error: unknown, ...hidden: string[]): void {
  const text = inspect(error, { depth: 20, showHidden: true }) + JSON.stringify(error) + String(error);
  for (const h of hidden) {
    assert.ok(!text.includes(h), "V7: the error holds what is hidden");
  }
}

// V1, P6, V7: whatever else happens than a verdict is an UndecidedError, and it says neither the secret nor the token.
test("V7 fails closed without the secret", async (t) => {
  const token = "internal-" + secrets.unknown.slice(8);
  const question: VerifyRequest = { key: secrets.live, connected_account_id: "acct_1", env: "live" };
  const answer = {
    valid: true, reason: "valid", api_key_id: "key_1", organization_id: "org_1", env: "live", key_name: "Till", payments_enabled: true, connected_account_id: "acct_1",
  };
  const valid = JSON.stringify(answer);
  const says = (body: string, status = 200): http.RequestListener => (_, res) => res.writeHead(status, { "Content-Type": "application/json" }).end(body);
  const spoilt = (members: object) => says(JSON.stringify({ ...answer, ...members }));
  let redirected = 0;
  const elsewhere = await serve(t, (_, res) => { redirected++; res.end(valid); });
  const redirect = (status: number): http.RequestListener => (_, res) => res.writeHead(status, { Location: elsewhere + "/v1/verify" }).end();

  const control = new Client({ addresses: [await serve(t, says(valid))], timeout: patience });
  assert.equal((await control.verify(question)).valid, true, "the unspoilt answer");

  const cases: Record<string, http.RequestListener> = {
    ...Object.fromEntries([201, 204, 400, 401, 403, 404, 429, 500, 502, 503].map((status) => [status, says(status === 204 ? "" : valid, status)])),
    "empty": says(""), "garbage": says("<html>welcome</html>"), "null": says("null"), "array": says(`[${valid}]`), "a string": says(`"valid"`),
    "trailing data": says(valid + "{}"), "cut short": says(valid.slice(0, -1)), "too large": says(valid + " ".repeat(70 << 10)),
    "valid missing": spoilt({ valid: undefined }), "valid null": spoilt({ valid: null }), "valid a string": spoilt({ valid: "true" }), "valid a number": spoilt({ valid: 1 }),
    "valid but revoked": spoilt({ reason: "revoked" }), "refused as valid": spoilt({ valid: false }), "reason missing": spoilt({ reason: undefined }),
    "no key id": spoilt({ api_key_id: undefined }), "no organization": spoilt({ organization_id: "" }), "organization an object": spoilt({ organization_id: {} }),
    "no environment": spoilt({ env: undefined }), "odd environment": spoilt({ env: "prod" }), "other environment": spoilt({ env: "test" }),
    "odd expiry": spoilt({ expires_at: "soon" }), "payments a string": spoilt({ payments_enabled: "true" }),
    "other account": spoilt({ connected_account_id: "acct_9" }), "no account": spoilt({ connected_account_id: undefined }),
    "redirect 302": redirect(302), "redirect 307": redirect(307), "redirect 308": redirect(308),
    "echo": (req, res) => { res.writeHead(200, { "X-Echo": req.headers.authorization ?? "" }); req.pipe(res); },
    "echo as an error": (req, res) => { res.writeHead(500); req.pipe(res); },
    "echo in place of HTTP": (req) => { req.on("data", (data: Buffer) => req.socket.end(`HTTP/1.1 ${data.toString()}\r\n\r\n`)); },
    "hangs up": (req) => { req.socket.destroy(); },
    "hangs up half way": (req, res) => { res.writeHead(200, { "Content-Length": "1000" }).write(valid, () => req.socket.destroy()); },
  };
  const addresses: Record<string, string> = { "refuses connections": await closedAddress(), "never answers": setup.frozen };
  for (const [name, handler] of Object.entries(cases)) {
    addresses[name] = await serve(t, handler);
  }
  for (const [name, address] of Object.entries(addresses)) {
    await t.test(name, async () => {
      const client = new Client({ addresses: [address], token, timeout: name.startsWith("never") ? 50 : patience });
      const asked = name.endsWith("environment") && name !== "other environment" ? { ...question, env: null } : question;
      await assert.rejects(client.verify(asked), (error) => {
        assert.ok(error instanceof UndecidedError);
        assert.equal(error.attempts.length, 1);
        assertSilent(error, secrets.live.slice(8), token);
        return true;
      });
    });
  }
  assert.equal(redirected, 0, "a redirect was followed: the secret went to an address nobody configured");
  assertSilent(new Client({ token }), token);
});

// One try an address, in order; the next one after a failed connection, a silent one or a 503 only.
test("the next address", async (t) => {
  let asked = 0;
  const good = new URL(setup.internal);
  const relay = await serve(t, (req, res) => {
    asked++;
    req.pipe(http.request({ ...address(good), path: req.url, method: req.method, headers: req.headers }, (answer) => answer.pipe(res)));
  });
  const status = (code: number) => serve(t, (_, res) => res.writeHead(code).end());
  const cases: [name: string, addresses: string[], valid: boolean][] = [
    ["first refuses connections", [await closedAddress(), relay], true],
    ["first answers 503", [await status(503), relay], true],
    ["first never answers", [setup.frozen, relay], true],
    ["two are away", [await closedAddress(), await status(503), relay], true],
    ["first answers 500", [await status(500), relay], false],
    ["first answers 401", [await status(401), relay], false],
    ["first answers nonsense", [await serve(t, (_, res) => res.end("{}")), relay], false],
    ["all answer 503", [await status(503), await status(503)], false],
  ];
  for (const [name, addresses, valid] of cases) {
    await t.test(name, async () => {
      asked = 0;
      const client = new Client({ addresses, token: setup.token, timeout: addresses.includes(setup.frozen) ? 4000 : patience });
      const answer = client.verify({ key: secrets.live });
      if (valid) {
        assert.equal((await answer).valid, true);
      } else {
        await assert.rejects(answer, UndecidedError);
      }
      assert.equal(asked, valid ? 1 : 0);
    });
  }
});

function address(url: URL): { host: string; port: string } {
  return { host: url.hostname, port: url.port };
}

test("the timeout is for the whole call", async () => {
  const began = performance.now();
  await assert.rejects(new Client({ addresses: [setup.frozen, setup.frozen, setup.frozen], timeout: 300 }).verify({ key: secrets.live }), (error) => {
    assert.ok(error instanceof UndecidedError);
    assert.deepEqual(error.attempts.map((a) => a.problem), Array(3).fill("gave no answer in time"));
    return true;
  });
  const took = performance.now() - began;
  assert.ok(took >= 290 && took < 5000, `took ${took} ms`);
});

// A frozen address costs its share of the time once and is then asked last; it stays the last hope.
test("an address that failed goes to the end of the line", async () => {
  const asked: string[] = [];
  let away = new Set(["a"]);
  const client = new Client({
    addresses: ["http://a", "http://b"],
    fetch: async (url) => {
      const host = new URL(String(url)).host;
      asked.push(host);
      return away.has(host) ? new Response(null, { status: 503 })
        : Response.json({ valid: true, reason: "valid", api_key_id: "key_1", organization_id: "org_1", env: "live" });
    },
  });
  const verify = () => client.verify({ key: secrets.live });
  await verify();
  await verify();
  assert.deepEqual(asked.splice(0), ["a", "b", "b"]);
  away = new Set(["b"]);
  await verify();
  assert.deepEqual(asked.splice(0), ["b", "a"]);
  away = new Set(["a", "b"]);
  await assert.rejects(verify(), UndecidedError);
  assert.deepEqual(asked.splice(0), ["a", "b"]);
  away = new Set();
  assert.equal((await verify()).valid, true, "both rest and neither was asked");
});

test("the caller gives up", async () => {
  const ending = new AbortController();
  const answer = new Client({ addresses: [setup.frozen, setup.internal], token: setup.token, timeout: 60_000 }).verify({ key: secrets.live }, { signal: ending.signal });
  ending.abort();
  await assert.rejects(answer, (error) => error instanceof UndecidedError && error.attempts.length === 1);
});

test("connections are kept, and one that died is replaced", async (t) => {
  const sockets = new Set<net.Socket>();
  const body = JSON.stringify({ valid: true, reason: "valid", api_key_id: "key_1", organization_id: "org_1", env: "live" });
  const url = await serve(t, (req, res) => { sockets.add(req.socket); res.end(body); });
  const client = new Client({ addresses: [url], timeout: patience });
  for (let i = 0; i < 20; i++) {
    await client.verify({ key: secrets.live });
  }
  assert.ok(sockets.size <= 3, `${sockets.size} connections for 20 verifications in a row`); // fetch hands one back a moment after the answer

  const hasty = await serve(t, (req, res) => { // ends the connection without a word of it, as a restart does
    if (sockets.has(req.socket)) {
      req.socket.destroy();
      return;
    }
    sockets.add(req.socket);
    res.end(body);
  });
  const other = new Client({ addresses: [hasty], timeout: patience });
  for (let i = 0; i < 20; i++) {
    assert.equal((await other.verify({ key: secrets.live })).valid, true);
  }
});
