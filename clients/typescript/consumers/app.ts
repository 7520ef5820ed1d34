// A program that uses every entry point of the packed package. The test compiles it under each kind of
// module and resolution, against the types that the package ships, and runs what comes out.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

import { Client, UndecidedError, type Identity, type Verdict, type Verifier } from "@keyward/client";
import { keyward as forExpress } from "@keyward/client/express";
import { keyward as forFastify } from "@keyward/client/fastify";
import { type KeywardEnv, keyward as forHono } from "@keyward/client/hono";
import { fastify } from "fastify";
import { Hono } from "hono";

async function main(): Promise<void> {
  const client: Verifier = new Client({ addresses: ["http://127.0.0.1:1"] }); // nothing listens there

  // The types of a verdict are there, and not any.
  const organization = (v: Verdict): string => (v.valid ? v.identity.organization_id : v.reason);
  // @ts-expect-error: no such member
  const wrong = (v: Identity): string => v.no_such_member;
  assert.equal(typeof organization, typeof wrong);

  const middleware = forExpress(client, { env: "live" });
  const server = createServer((req, res) => {
    void middleware(req, res, () => res.end(req.keyward?.organization_id));
  }).listen(0, "127.0.0.1");
  await new Promise((listening) => server.once("listening", listening));
  const { port } = server.address() as AddressInfo;
  assert.equal((await fetch(`http://127.0.0.1:${port}/`)).status, 401);
  server.close();

  const app = fastify();
  app.register(forFastify, { verifier: client });
  app.get("/", async (request) => request.keyward?.organization_id);
  assert.equal((await app.inject("/")).statusCode, 401);
  await app.close();

  const hono = new Hono<KeywardEnv>();
  hono.use(forHono(client));
  hono.get("/", (c) => c.text(c.get("keyward").organization_id));
  assert.equal((await hono.request("/")).status, 401);

  await assert.rejects(client.verify({ key: "k".repeat(44) }), UndecidedError);
  console.log("used every entry point");
}

void main();
