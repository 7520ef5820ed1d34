// A payments API in Express behind the middleware, for the test that holds every door to the same verdicts. It answers what reached it.
import { once } from "node:events";
import type { AddressInfo } from "node:net";

import express from "express";

import { Client } from "@keyward/client";
import { type GateOptions, keyward } from "@keyward/client/express";

const given = process.env["KEYWARD_DOOR"];
if (!given) {
  throw new Error("this is run by: go test ./internal/doors");
}
const client = new Client(JSON.parse(given));

/** Starts the API and returns its address. */
async function serve(options: GateOptions): Promise<string> {
  const app = express();
  app.use(keyward(client, options), express.text({ type: () => true }), (req, res) => {
    const Header: Record<string, string[]> = {};
    for (let i = 0; i < req.rawHeaders.length; i += 2) {
      (Header[req.rawHeaders[i] ?? ""] ??= []).push(req.rawHeaders[i + 1] ?? "");
    }
    const id = req.keyward;
    res.json({
      Identity: id && { Organization: id.organization_id, Environment: id.env, Key: id.api_key_id, Account: id.connected_account_id ?? "", Payments: id.payments_enabled },
      Method: req.method, URI: req.originalUrl, Header, Body: req.body,
    });
  });
  const server = app.listen(0, "127.0.0.1");
  await once(server, "listening");
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

console.log(await serve({}), await serve({ env: "live" }));
