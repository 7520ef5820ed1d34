import type { IncomingMessage } from "node:http";

import type { MiddlewareHandler } from "hono";

import type { Identity, Verifier } from "./client.js";
import { isIdentity, type Values } from "./credential.js";
import { Gate, type GateOptions, isRefusal } from "./gate.js";
import { removeIdentity } from "./node.js";

export type { GateOptions, Identity };

/** The context's variables behind the middleware: `new Hono<KeywardEnv>()`. */
export interface KeywardEnv {
  Variables: { keyward: Identity };
}

/** Hono middleware: `app.use(keyward(new Client()))`. Its rules are those of the middleware for Express; the identity is `c.get("keyward")`. */
export function keyward(verifier: Verifier, options: GateOptions = {}): MiddlewareHandler<KeywardEnv> {
  const gate = new Gate(verifier, options);
  return async (c, next) => {
    const headers = c.req.raw.headers;
    const decision = await gate.decide({
      url: c.req.url, values: (header) => split(headers.get(header)), requestID: c.res.headers.get("X-Request-Id") ?? undefined,
    });
    if (isRefusal(decision)) {
      return c.body(decision.body, decision.status, decision.headers);
    }
    const spoofed = [...headers.keys()].filter(isIdentity);
    if (spoofed.length > 0) {
      try {
        spoofed.forEach((name) => headers.delete(name));
      } catch { // some runtimes make them immutable
        const clean = new Headers([...headers].filter(([name]) => !isIdentity(name)));
        c.req.raw = new Request(c.req.raw, { headers: clean });
      }
      const { incoming } = (c.env ?? {}) as { incoming?: IncomingMessage }; // Node's own request, beside Hono's
      if (incoming?.rawHeaders) {
        removeIdentity(incoming);
      }
    }
    c.set("keyward", decision);
    await next();
    return;
  };
}

/** The values of a header that was sent several times come as one; a secret or an account has no comma. */
function split(value: string | null): Values {
  return value === null ? [] : value.split(/ *, */);
}
