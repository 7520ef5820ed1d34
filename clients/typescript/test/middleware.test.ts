import assert from "node:assert/strict";
import { once } from "node:events";
import http, { type IncomingMessage } from "node:http";
import http2 from "node:http2";
import type { AddressInfo } from "node:net";
import { type TestContext, test } from "node:test";

import { type ServerType, serve as serveHono } from "@hono/node-server";
import express from "express";
import fastify from "fastify";
import { Hono } from "hono";

import { Client, type Identity, type Verifier } from "@keyward/client";
import { type GateOptions, keyward as forExpress } from "@keyward/client/express";
import { keyward as forFastify } from "@keyward/client/fastify";
import { type KeywardEnv, keyward as forHono } from "@keyward/client/hono";

import { patience, revoke, setup } from "./setup.js";

const { secrets } = setup;

/** What a handler behind the middleware saw. */
interface Seen {
  identity: Identity;
  headers: Record<string, string>;
  everywhere: string[]; // names of headers, wherever the framework shows them
}

function everywhere(request: IncomingMessage): string[] {
  return [...Object.keys(request.headers), ...Object.keys(request.headersDistinct), ...request.rawHeaders.filter((_, i) => i % 2 === 0)];
}

/** Starts one payments API for each framework, behind its middleware. It answers what it saw. */
const frameworks: Record<string, (t: TestContext, verifier: Verifier, options?: GateOptions) => Promise<number>> = {
  async express(t, verifier, options) {
    const app = express();
    app.use((_, res, next) => { res.setHeader("X-Outer", "kept"); next(); });
    app.use("/v1", forExpress(verifier, options), (req, res) => {
      const identity: Identity | undefined = req.keyward;
      res.json({ identity, headers: req.headers, everywhere: everywhere(req) });
    });
    const server = app.listen(0, "127.0.0.1");
    await once(server, "listening");
    t.after(() => { server.closeAllConnections(); server.close(); });
    return (server.address() as AddressInfo).port;
  },
  async fastify(t, verifier, options) {
    const app = fastify();
    app.addHook("onRequest", async (_, reply) => { reply.header("X-Outer", "kept"); });
    app.register(forFastify, { verifier, ...options });
    app.all("/v1/*", async (request) => {
      const identity: Identity | null = request.keyward;
      return { identity, headers: request.headers, everywhere: everywhere(request.raw) };
    });
    await app.listen({ port: 0, host: "127.0.0.1" });
    t.after(() => app.close());
    return (app.server.address() as AddressInfo).port;
  },
  async hono(t, verifier, options) {
    const app = new Hono<KeywardEnv>();
    app.use(async (c, next) => { c.header("X-Outer", "kept"); await next(); });
    app.use("/v1/*", forHono(verifier, options));
    app.all("/v1/*", (c) => {
      const identity: Identity = c.get("keyward");
      return c.json({ identity, headers: c.req.header(), everywhere: [...c.req.raw.headers.keys(), ...everywhere((c.env as { incoming: IncomingMessage }).incoming)] });
    });
    const server: ServerType = await new Promise((resolve) => { const s: ServerType = serveHono({ fetch: app.fetch, port: 0, hostname: "127.0.0.1" }, () => resolve(s)); });
    t.after(() => { (server as http.Server).closeAllConnections(); server.close(); });
    return (server.address() as AddressInfo).port;
  },
};

interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  body: string;
}

type Headers = Record<string, string | string[]>;

/** Sends a request; a header with several values is sent several times. */
async function ask(port: number, headers: Headers, path = "/v1/payments?limit=3"): Promise<Answer> {
  const request = http.request({ host: "127.0.0.1", port, path, agent: false });
  for (const [name, value] of Object.entries(headers)) {
    request.setHeader(name, value);
  }
  request.end();
  const [response] = await once(request, "response") as [IncomingMessage];
  let body = "";
  for await (const part of response.setEncoding("utf8")) {
    body += part;
  }
  return { status: response.statusCode ?? 0, headers: response.headers, body };
}

/** Holds a refusal against the form every refusal has (C25, V7). */
function assertProblem(answer: Answer, code: string, param?: string): void {
  assert.ok(!answer.body.includes("sk_") && !JSON.stringify(answer.headers).includes("sk_"), "V7: a refusal holds a secret");
  const problem = JSON.parse(answer.body);
  assert.deepEqual(
    { type: problem.type, status: problem.status, code: problem.code, param: problem.param, request_id: problem.request_id },
    { type: `urn:keyward:problem:${code}`, status: answer.status, code, param, request_id: answer.headers["x-request-id"] },
  );
  assert.ok(problem.title && problem.detail && problem.request_id);
  assert.match(answer.headers["content-type"] ?? "", /^application\/problem\+json/);
  assert.equal(answer.headers["cache-control"], "no-store");
  assert.equal(answer.headers["www-authenticate"], answer.status === 401 ? `Bearer error="invalid_token"` : undefined);
  assert.equal(answer.headers["retry-after"], answer.status === 503 ? "1" : undefined);
  assert.equal(answer.headers["x-outer"], "kept");
}

const basic = (text: string) => "Basic " + Buffer.from(text).toString("base64");
const account = "X-Connected-Account-ID";

/** V1, V2, V3, V4: the same cases as the Go middleware's. */
const cases: [name: string, headers: Headers, status: number, options?: GateOptions & { path?: string }][] = [
  ["bearer", { Authorization: "Bearer " + secrets.live }, 200],
  ["bearer, spaces and case", { authorization: "bEARER  " + secrets.live + " " }, 200],
  ["basic", { Authorization: basic(secrets.live + ":") }, 200],
  ["api key", { "X-API-Key": secrets.live }, 200],
  ["api key twice", { "X-API-Key": [secrets.live, secrets.live] }, 200],
  ["all agree", { "X-API-Key": secrets.live, Authorization: basic(secrets.live + ":") }, 200],
  ["live wanted", { "X-API-Key": secrets.live }, 200, { env: "live" }],
  ["test", { "X-API-Key": secrets.test }, 200, { env: "test" }],
  ["own child", { "X-API-Key": secrets.live, [account]: secrets.account }, 200],
  ["harmless query", { "X-API-Key": secrets.live }, 200, { path: "/v1/x?limit=3&q=sk_live_&note=%zz" }],

  ["foreign child", { "X-API-Key": secrets.live, [account]: secrets.foreign_account }, 403],
  ["unknown child", { "X-API-Key": secrets.live, [account]: "acct_3" }, 403],
  ["the organization itself", { "X-API-Key": secrets.live, [account]: secrets.organization }, 403],
  ["child, empty", { "X-API-Key": secrets.live, [account]: "" }, 403],
  ["child, twice", { "X-API-Key": secrets.live, [account]: [secrets.account, secrets.account] }, 403],
  ["child, two in one", { "X-API-Key": secrets.live, [account]: `${secrets.account}, ${secrets.account}` }, 403],
  ["child, two in one without a space", { "X-API-Key": secrets.live, [account]: `${secrets.account},${secrets.account}` }, 403],

  ["none", {}, 401],
  ["revoked", { "X-API-Key": secrets.revoked }, 401],
  ["expired", { "X-API-Key": secrets.expired }, 401],
  ["unknown", { "X-API-Key": secrets.unknown }, 401],
  ["unknown, child empty", { "X-API-Key": secrets.unknown, [account]: "" }, 401],
  ["malformed", { "X-API-Key": secrets.malformed }, 401],
  ["other environment", { "X-API-Key": secrets.live }, 401, { env: "test" }],
  ["inactive organization", { "X-API-Key": secrets.inactive }, 401],
  ["two that differ", { "X-API-Key": secrets.live, Authorization: "Bearer " + secrets.test }, 401],
  ["two api keys", { "X-API-Key": [secrets.live, secrets.test] }, 401],
  ["api key, one empty", { "X-API-Key": [secrets.live, ""] }, 401],
  ["empty api key beside a bearer", { "X-API-Key": "", Authorization: "Bearer " + secrets.live }, 401],
  ["one authorization twice", { Authorization: ["Bearer " + secrets.live, "Bearer " + secrets.live] }, 401],
  ["two authorizations", { Authorization: ["Bearer " + secrets.live, "Bearer " + secrets.test] }, 401],
  ["two authorizations and an api key", { Authorization: ["Bearer " + secrets.live, "Bearer " + secrets.live], "X-API-Key": secrets.live }, 401],
  ["two in one authorization", { Authorization: `Bearer ${secrets.live}, Bearer ${secrets.live}` }, 401],
  ["another scheme", { "X-API-Key": secrets.live, Authorization: "Digest x" }, 401],
  ["empty authorization", { "X-API-Key": secrets.live, Authorization: "" }, 401],
  ["no scheme", { Authorization: secrets.live }, 401],
  ["scheme alone", { Authorization: "Bearer" }, 401],
  ["basic with a password", { Authorization: basic(secrets.live + ":x") }, 401],
  ["basic as password", { Authorization: basic(":" + secrets.live) }, 401],
  ["basic without a colon", { Authorization: basic(secrets.live) }, 401],
  ["basic, not base64", { Authorization: "Basic !" + basic(secrets.live + ":").slice(6) }, 401],
  ["in the query", { "X-API-Key": secrets.live }, 400, { path: "/v1/x?key=" + secrets.live }],
  ["in the query, escaped", { "X-API-Key": secrets.live }, 400, { path: "/v1/x?bad=%zz&key=" + secrets.live.replaceAll("_", "%5f") }],
  ["in the query, escaped twice", { "X-API-Key": secrets.live }, 400, { path: "/v1/x?key=" + secrets.live.replaceAll("_", "%255F") }],
  ["in the path", { "X-API-Key": secrets.live }, 400, { path: "/v1/" + secrets.live.replaceAll("_", "%5F") }],
];

const codes: Record<number, string> = { 400: "invalid_request", 401: "invalid_token", 403: "connected_account", 503: "unavailable" };

for (const [framework, start] of Object.entries(frameworks)) {
  test(`V4 ${framework}`, async (t) => {
    const client = new Client({ addresses: [setup.internal], token: setup.token, timeout: patience });
    const ports = new Map<string | undefined, number>();
    for (const env of [undefined, "live", "test"] as const) {
      ports.set(env, await start(t, client, env && { env }));
    }
    for (const [name, headers, status, { path, env } = {}] of cases) {
      await t.test(name, async () => {
        const answer = await ask(ports.get(env)!, headers, path);
        assert.equal(answer.status, status, answer.body);
        if (status !== 200) {
          assertProblem(answer, codes[status]!, status === 403 ? account : undefined);
          return;
        }
        const { identity } = JSON.parse(answer.body) as Seen;
        const live = headers["X-API-Key"] !== secrets.test;
        assert.deepEqual(identity, {
          api_key_id: live ? secrets.live_id : identity.api_key_id, organization_id: live ? secrets.organization : "org_test", env: live ? "live" : "test",
          key_name: "Till", payments_enabled: live, expires_at: identity.expires_at, ...(headers[account] && { connected_account_id: headers[account] }),
        });
      });
    }

    // V2: what a client says about itself does not reach the handler, everything else does.
    await t.test("V2 spoofed identity headers", async () => {
      const names = ["X-Keyward-Organization-Id", "x-keyward-key-id", "X_Keyward_Environment", "X-Keyward_Connected-Account-Id", "X-Keyward-", "X.Keyward.Key.Id", "x!keyward~key|id"];
      const answer = await ask(ports.get(undefined)!, {
        "X-API-Key": secrets.live, "X-Keywardly": "fine", "X-Request-Id": "req-1", ...Object.fromEntries(names.map((name) => [name, ["org_victim", "org_other"]])),
      });
      const seen: Seen = JSON.parse(answer.body);
      assert.deepEqual(seen.everywhere.filter((name) => /keyward[^a-z0-9]/i.test(name)), []);
      assert.ok(!answer.body.includes("org_victim"));
      assert.equal(seen.headers["x-keywardly"], "fine");
      assert.equal(seen.headers["x-request-id"], "req-1");
      assert.equal(seen.headers["x-api-key"], secrets.live);
    });

    // V2: one opaque 401, byte for byte, whatever is wrong with the key.
    await t.test("V2 opaque", async () => {
      const bodies = new Set<string>();
      for (const key of [secrets.revoked, secrets.expired, secrets.unknown, secrets.malformed, secrets.inactive, ""]) {
        bodies.add((await ask(ports.get(undefined)!, { "X-API-Key": key, "X-Request-Id": "req-1" })).body);
      }
      assert.equal(bodies.size, 1);
    });

    // C26
    await t.test("C26 request id", async () => {
      const id = async (given: string) => (await ask(ports.get(undefined)!, { "X-Request-Id": given })).headers["x-request-id"];
      assert.equal(await id("req-1"), "req-1");
      for (const odd of ["a".repeat(129), "<script>", secrets.live, "a b"]) {
        assert.match(String(await id(odd)), /^req_[0-9a-f]{32}$/);
      }
    });

    // C23: refused from the moment revoke has answered.
    await t.test("C23 revoke", async () => {
      const doomed = setup.doomed[1 + Object.keys(frameworks).indexOf(framework)]!;
      assert.equal((await ask(ports.get(undefined)!, { "X-API-Key": doomed.key })).status, 200);
      await revoke(doomed);
      assert.equal((await ask(ports.get(undefined)!, { "X-API-Key": doomed.key })).status, 401);
    });

    // V1, P6: 503 and never the handler when it could not be decided.
    await t.test("V1 undecided", async (t) => {
      const valid = { valid: true, reason: "valid", identity: {} } as const;
      const verifiers: Record<string, Verifier> = {
        "never answers": new Client({ addresses: [setup.frozen], timeout: 50 }),
        "the wrong token": new Client({ addresses: [setup.internal], token: "not-the-internal-token", timeout: patience }),
        "throws": { verify() { throw new Error(secrets.live); } },
        "answers nothing": { verify: async () => undefined as never },
      };
      for (const [name, verifier] of Object.entries(verifiers)) {
        const seen: unknown[] = [];
        const port = await start(t, verifier, { observe: (o) => { seen.push(o); } });
        const answer = await ask(port, { "X-API-Key": secrets.live });
        assert.equal(answer.status, 503, name);
        assertProblem(answer, "unavailable");
        assert.ok(seen.length > 0 && "error" in (seen.at(-1) as object), name);
      }
      const observerFails = await start(t, { verify: async () => valid as never }, { observe: () => { throw new Error("full disk"); } });
      assert.equal((await ask(observerFails, { "X-API-Key": secrets.live })).status, 503);
    });
  });
}

test("V2 spoofed identity headers over HTTP/2", async (t) => {
  const app = fastify({ http2: true });
  app.register(forFastify, { verifier: { verify: async () => ({ valid: true, reason: "valid", identity: { organization_id: "org_1" } }) as never } });
  app.get("/", async (request) => ({ organization: request.keyward?.organization_id, names: [...Object.keys(request.headers), ...request.raw.rawHeaders] }));
  await app.listen({ port: 0, host: "127.0.0.1" });
  t.after(() => app.close());
  const session = http2.connect(`http://127.0.0.1:${(app.server.address() as AddressInfo).port}`);
  t.after(() => session.destroy());
  let body = "";
  for await (const part of session.request({ ":path": "/", "x-api-key": "s", "x-keyward-key-id": "key_victim", "x_keyward_env": "live" }).setEncoding("utf8")) {
    body += part;
  }
  assert.match(body, /"organization":"org_1"/);
  assert.doesNotMatch(body, /keyward/i);
});

// V2: where Express mounts a middleware, req.url is a part of what was sent.
test("V2 a secret in the path that Express mounts at", async (t) => {
  const app = express();
  app.use("/:tenant", forExpress({ verify: async () => ({ valid: true, reason: "valid", identity: { organization_id: "org_1" } }) as never }), (_, res) => { res.end(); });
  const server = app.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => { server.closeAllConnections(); server.close(); });
  const { port } = server.address() as AddressInfo;
  assert.equal((await ask(port, { "X-API-Key": "s" }, "/acme/payments")).status, 200);
  assert.equal((await ask(port, { "X-API-Key": "s" }, `/${secrets.unknown}/payments`)).status, 400);
});

test("env is one", () => {
  assert.throws(() => forExpress(new Client(), { env: "prod" as never }), TypeError);
  assert.throws(() => forHono(new Client(), { env: "" as never }), TypeError);
});

test("Hono on a runtime whose request headers cannot be changed", async () => {
  const app = new Hono<KeywardEnv>();
  app.use(forHono({ verify: async () => ({ valid: true, reason: "valid", identity: { organization_id: "org_1" } }) as never }));
  app.get("/", (c) => c.json(c.req.header()));
  const request = new Request("http://h/", { headers: { "X-API-Key": "s", "X-Keyward-Key-Id": "key_victim", "X-Kept": "kept" } });
  Object.defineProperty(request.headers, "delete", { value() { throw new TypeError("immutable"); } });
  const seen = await (await app.request(request)).json() as Record<string, string>;
  assert.deepEqual(seen, { "x-api-key": "s", "x-kept": "kept" });
});
