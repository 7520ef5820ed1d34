// @keyward/client lets a Node program accept the API keys that Keyward issues. A Client asks Keyward's verification listener
// whether a secret is good; ./express, ./fastify and ./hono put that question in front of handlers.
//
// Nothing is cached: a revoked key is refused from the moment revoke has answered. When no address of Keyward can decide,
// verify rejects with UndecidedError and the caller must refuse.

export { Client, UndecidedError } from "./client.js";
export type {
  Attempt, ClientOptions, Environment, Identity, Reason, Verdict, Verifier, VerifyOptions, VerifyRequest,
} from "./client.js";
export type { GateOptions, Observation } from "./gate.js";
