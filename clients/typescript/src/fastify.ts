import type { FastifyPluginCallback } from "fastify";

import type { Identity, Verifier } from "./client.js";
import { Gate, type GateOptions, isRefusal } from "./gate.js";
import { removeIdentity, valuesOf } from "./node.js";

export type { GateOptions, Identity };

declare module "fastify" {
  interface FastifyRequest {
    /** Whose key the request came with. Null when it did not pass keyward: refuse then. */
    keyward: Identity | null;
  }
}

export interface PluginOptions extends GateOptions {
  readonly verifier: Verifier;
}

/**
 * A Fastify plugin for the scope it is registered in: `app.register(keyward, { verifier: new Client() })`. Its rules are those of the
 * middleware for Express; the identity is `request.keyward`.
 */
export const keyward: FastifyPluginCallback<PluginOptions> = (app, options, done) => {
  const gate = new Gate(options.verifier, options);
  if (!app.hasRequestDecorator("keyward")) {
    app.decorateRequest("keyward", null);
  }
  app.addHook("onRequest", async (request, reply) => {
    const outer = reply.getHeader("X-Request-Id");
    const decision = await gate.decide({
      url: request.originalUrl, values: (header) => valuesOf(request.raw, header), requestID: typeof outer === "string" ? outer : undefined,
    });
    if (isRefusal(decision)) {
      return reply.code(decision.status).headers(decision.headers).send(decision.body);
    }
    removeIdentity(request.raw);
    request.keyward = decision;
  });
  done();
};

// The hook is for the scope that registers the plugin, not for a scope of the plugin's own.
Object.assign(keyward, { [Symbol.for("skip-override")]: true, [Symbol.for("fastify.display-name")]: "keyward" });
