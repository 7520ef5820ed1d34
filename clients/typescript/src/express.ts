import type { IncomingMessage, ServerResponse } from "node:http";

import type { Identity, Verifier } from "./client.js";
import { Gate, type GateOptions, isRefusal } from "./gate.js";
import { removeIdentity, valuesOf } from "./node.js";

export type { GateOptions, Identity };

declare module "http" {
  interface IncomingMessage {
    /** Whose key the request came with. Absent when it did not pass keyward: refuse then. */
    keyward?: Identity;
  }
}

/**
 * Express middleware, and any other's of the form (req, res, next). It lets a request through only with an API key that the verifier
 * says is valid, and with the key's identity in `req.keyward`.
 *
 * The secret is taken from Authorization: Bearer, from HTTP Basic as the user name without a password, or from X-API-Key. A request with two
 * that differ, with several Authorization headers, or with a secret in its URL is refused. X-Connected-Account-ID narrows it to a
 * connected account of the key's organization. Refusals are application/problem+json: 400 for a secret in the URL; 401 for no valid key, whatever the reason;
 * 403 for a connected account that is not the caller's; 503 when it could not be decided. X-Keyward-* request headers are removed.
 */
export function keyward(verifier: Verifier, options: GateOptions = {}): (req: IncomingMessage, res: ServerResponse, next: (error?: unknown) => void) => Promise<void> {
  const gate = new Gate(verifier, options);
  return async (req, res, next) => {
    delete req.keyward;
    const { originalUrl } = req as { originalUrl?: string }; // where Express mounts a router, url is a part of it
    const outer = res.getHeader("X-Request-Id");
    const decision = await gate.decide({
      url: originalUrl ?? req.url ?? "", values: (header) => valuesOf(req, header), requestID: typeof outer === "string" ? outer : undefined,
    });
    if (isRefusal(decision)) {
      res.writeHead(decision.status, decision.headers).end(decision.body);
      return;
    }
    removeIdentity(req);
    req.keyward = decision;
    next();
  };
}
