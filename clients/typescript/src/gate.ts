import { randomUUID } from "node:crypto";

import type { Environment, Identity, Verdict, Verifier } from "./client.js";
import { accountOf, holdsSecret, secretOf, type Values } from "./credential.js";
import type { components } from "./openapi.js";

/** The verdict about a request that had one credential, or the error for which it was answered 503. */
export type Observation = { readonly verdict: Verdict } | { readonly error: unknown };

export interface GateOptions {
  /** Refuses keys of the other environment. */
  readonly env?: Environment;
  /** Replaces the default observer, which writes errors to console.error and nothing else. It is called before the answer. */
  readonly observe?: (seen: Observation) => void;
}

/** What of a request decides, whatever the framework. */
export interface Asked {
  /** The request target, as the client sent it. */
  readonly url: string;
  /** The values of a header, given in lower case. */
  readonly values: (header: string) => Values;
  /** The request id that an outer handler has put on the answer. */
  readonly requestID?: string | undefined;
}

/** An answer that ends the request. */
export interface Refusal {
  readonly status: 400 | 401 | 403 | 503;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

/** The one decision behind every framework's middleware. */
export class Gate {
  readonly #verifier: Verifier;
  readonly #env: Environment | undefined;
  readonly #observe: (seen: Observation) => void;

  constructor(verifier: Verifier, options: GateOptions) {
    if (options.env !== undefined && options.env !== "live" && options.env !== "test") {
      throw new TypeError("keyward: env must be live or test");
    }
    this.#verifier = verifier;
    this.#env = options.env;
    this.#observe = options.observe ?? logErrors;
  }

  /** Lets a request through with an identity, or says what to answer. It never rejects: whatever goes wrong is a refusal. */
  async decide(asked: Asked): Promise<Identity | Refusal> {
    const requestID = [asked.requestID, ...asked.values("x-request-id")].find(sane) ?? `req_${randomUUID().replaceAll("-", "")}`;
    try {
      if (holdsSecret(asked.url)) {
        return refuse(secretInURL, requestID);
      }
      const secret = secretOf(asked.values("authorization"), asked.values("x-api-key"));
      if (secret === undefined) {
        return refuse(unauthorized, requestID);
      }
      const account = accountOf(asked.values("x-connected-account-id"));
      const verdict = await this.#verifier.verify({
        key: secret, ...(account !== undefined && { connected_account_id: account }), ...(this.#env && { env: this.#env }),
      });
      this.#observe({ verdict });
      if (verdict.valid === true) {
        return verdict.identity;
      }
      return refuse(verdict.reason === "connected_account_forbidden" ? forbidden : unauthorized, requestID);
    } catch (error) {
      try {
        this.#observe({ error });
      } catch {
        // An observer that fails lets nobody in and keeps nobody waiting.
      }
      return refuse(undecided, requestID);
    }
  }
}

export function isRefusal(decision: Identity | Refusal): decision is Refusal {
  return "status" in decision;
}

function logErrors(seen: Observation): void {
  if ("error" in seen) {
    console.error("a request was refused because its API key could not be verified:", seen.error instanceof Error ? seen.error.message : "unknown error");
  }
}

type Problem = Pick<components["schemas"]["Problem"], "title" | "status" | "code" | "detail" | "param"> & { status: Refusal["status"] };

// The refusals. They are fixed, so that they tell a guesser nothing.
const secretInURL: Problem = {
  title: "Invalid request", status: 400, code: "invalid_request",
  detail: "A secret must never be part of a URL: URLs are logged and remembered. Send it in a header, and roll the key it belongs to.",
};
const unauthorized: Problem = {
  title: "Invalid token", status: 401, code: "invalid_token",
  detail: "Send a valid API key as Authorization: Bearer, as the user name of HTTP Basic or as X-API-Key; one of them, and never in the URL.",
};
const forbidden: Problem = {
  title: "Connected account", status: 403, code: "connected_account",
  detail: "X-Connected-Account-ID must name one connected account of the key's organization.",
  param: "X-Connected-Account-ID",
};
const undecided: Problem = {
  title: "Unavailable", status: 503, code: "unavailable",
  detail: "The API key could not be verified. Nothing was done; ask again in a moment.",
};

function refuse(p: Problem, requestID: string): Refusal {
  return {
    status: p.status,
    headers: {
      "Content-Type": "application/problem+json", "Cache-Control": "no-store", "X-Request-Id": requestID,
      ...(p.status === 401 && { "WWW-Authenticate": `Bearer error="invalid_token"` }),
      ...(p.status === 503 && { "Retry-After": "1" }),
    },
    body: JSON.stringify({ type: `urn:keyward:problem:${p.code}`, ...p, request_id: requestID } satisfies components["schemas"]["Problem"]) + "\n",
  };
}

/** Whether a request id is kept: an outer handler's comes before the client's, and one that holds a secret is neither. */
function sane(id: string | undefined): id is string {
  return id !== undefined && /^[A-Za-z0-9._:/+=-]{1,128}$/.test(id) && !holdsSecret(id);
}
