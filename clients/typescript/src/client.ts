import type { components } from "./openapi.js";

type Schemas = components["schemas"];

/** The environments a key can belong to. */
export type Environment = Schemas["Environment"];

/** One question, as POST /v1/verify takes it. `key` is the secret that a client presented. */
export type VerifyRequest = Readonly<Schemas["VerifyKey"]>;

/** Why a key is refused. New words may come. */
export type Reason = Exclude<Schemas["Verdict"]["reason"], "valid"> | (string & {});

type Known = Omit<Schemas["Verdict"], "valid" | "reason">;

/**
 * Whose key it is. `expires_at` is absent when it never expires, `connected_account_id` when the request concerns the
 * organization itself. With `payments_enabled: false` the organization may not take payments, and its keys stay valid, so
 * that reports and refunds go on: the API decides what that forbids.
 */
export type Identity = Readonly<Known & Required<Pick<Known, "api_key_id" | "organization_id" | "env" | "key_name" | "payments_enabled">>>;

/** Keyward's answer about one secret. Of a refused key, `identity` is what is known of it; it must not be acted upon. */
export type Verdict =
  | { readonly valid: true; readonly reason: "valid"; readonly identity: Identity }
  | { readonly valid: false; readonly reason: Reason; readonly identity: Partial<Identity> };

export interface VerifyOptions {
  /** Gives up the call: it then rejects with UndecidedError. */
  readonly signal?: AbortSignal;
}

/** What the middleware needs. A Client is one; tests may bring their own. */
export interface Verifier {
  verify(request: VerifyRequest, options?: VerifyOptions): Promise<Verdict>;
}

export interface ClientOptions {
  /**
   * Verification listeners, as http://host:port or https://host:port. They are tried in this order; one that failed goes to the
   * end of the line for five seconds. Default: http://127.0.0.1:8081. Secrets cross this connection: beyond the own
   * machine or a network you trust, use https.
   */
  readonly addresses?: readonly string[];
  /** The token of a credential with the scope verify; left out when Keyward has none. */
  readonly token?: string;
  /**
   * Bounds a whole verify, every try included, in milliseconds. Each try gets an equal share of what is left, so that one
   * address that hangs leaves time for the next. Default: 2000.
   */
  readonly timeout?: number;
  /** Replaces the runtime's fetch, for example for a private authority. Redirects are refused whatever it does. */
  readonly fetch?: typeof globalThis.fetch;
}

/** One address that gave no verdict, and what it did instead. */
export interface Attempt {
  readonly address: string;
  readonly problem: string;
}

const undecided = Symbol.for("@keyward/client UndecidedError");

/** Keyward gave no verdict. The caller refuses, as for an invalid key, and may ask again. It never holds the secret or the token. */
export class UndecidedError extends Error {
  // A program can load the package twice, as ES modules and as CommonJS.
  /** An error of either copy of the package is an instance of both. */
  static override [Symbol.hasInstance](value: unknown): boolean {
    if (this !== UndecidedError) { // a class derived from it
      return Function.prototype[Symbol.hasInstance].call(this, value);
    }
    return typeof value === "object" && value !== null && undecided in value;
  }

  override readonly name = "UndecidedError";
  readonly attempts: readonly Attempt[];

  constructor(attempts: readonly Attempt[]) {
    super(["keyward: could not decide", attempts.map((a) => `${a.address} ${a.problem}`).join("; ")].filter(Boolean).join(": "));
    this.attempts = attempts;
  }
}
Object.defineProperty(UndecidedError.prototype, undecided, { value: true });

const defaultAddress = "http://127.0.0.1:8081";
const defaultTimeout = 2000;

/** Bounds what is read of an answer, in bytes; a verdict is under 2 KiB. */
const answerLimit = 64 << 10;

/** How long an address that failed is asked last instead of first, in milliseconds. */
const rest = 5000;

/** Stands for whatever cannot name an account: no organization has this id. Keyward still judges the secret first. */
export const notAnAccount = "-";

/** The form of an organization's id. */
const accountForm = /^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$/;

/** Far above the longest secret. What is longer, or has a space, is malformed without asking: a stray paste travels nowhere. */
const possibleSecret = /^[!-~]{1,512}$/;

interface Address {
  readonly url: string;
  /** When a failed address may be tried first again; 0 = in good standing. */
  restUntil: number;
}

/** What one try came to: an answer's text, or why there is none. Only a problem that `next` says so of is worth asking another address. */
type Try = { readonly text: string } | { readonly problem: string; readonly next: boolean };

/** Asks Keyward for verdicts. It is meant to live as long as the program: the runtime keeps its connections open. */
export class Client implements Verifier {
  readonly #addresses: readonly Address[];
  readonly #token: string;
  readonly #timeout: number;
  readonly #fetch: typeof globalThis.fetch;

  /** Connects to nothing yet, so it succeeds while Keyward is away. Wrong options throw a TypeError that does not echo them. */
  constructor(options: ClientOptions = {}) {
    this.#token = options.token ?? "";
    if (!/^[!-~]*$/.test(this.#token)) {
      throw new TypeError("keyward: token must be printable ASCII without spaces");
    }
    this.#timeout = options.timeout ?? defaultTimeout;
    if (!(this.#timeout > 0 && this.#timeout < 2 ** 31)) {
      throw new TypeError("keyward: timeout must be a positive number of milliseconds");
    }
    const given = options.addresses?.length ? options.addresses : [defaultAddress];
    this.#addresses = given.map((a, i) => ({ url: origin(a, i) + "/v1/verify", restUntil: 0 }));
    this.#fetch = options.fetch ?? globalThis.fetch;
  }

  /**
   * Asks whether a secret is good at this moment. A refusal is a verdict; UndecidedError means that it could not be decided,
   * TypeError that `env` or `min_revision` is not one: the caller must refuse either way.
   *
   * Each address is asked once, and the next one only after a connection that failed or gave no answer in its share of the time,
   * or a 503. An accepted verification counts as a use of the key.
   */
  async verify(request: VerifyRequest, options: VerifyOptions = {}): Promise<Verdict> {
    const question = { ...request };
    if (question.env != null && question.env !== "live" && question.env !== "test") {
      throw new TypeError("keyward: env must be live, test or left out");
    }
    if (question.min_revision != null && !(Number.isSafeInteger(question.min_revision) && question.min_revision >= 0)) {
      throw new TypeError("keyward: min_revision must be a whole number, not negative");
    }
    if (typeof question.key !== "string" || !possibleSecret.test(question.key)) {
      return { valid: false, reason: "malformed", identity: {} };
    }
    if (question.connected_account_id === "") {
      delete question.connected_account_id; // as the server takes null
    } else if (question.connected_account_id != null && !accountForm.test(question.connected_account_id)) {
      question.connected_account_id = notAnAccount;
    }
    const body = JSON.stringify({
      key: question.key, connected_account_id: question.connected_account_id, env: question.env, min_revision: question.min_revision,
    });
    const deadline = performance.now() + this.#timeout;
    const attempts: Attempt[] = [];
    const line = this.#line();
    for (const [i, address] of line.entries()) {
      const share = (deadline - performance.now()) / (line.length - i);
      const answer = await this.#ask(address.url, body, share, options.signal);
      if ("text" in answer) {
        address.restUntil = 0;
        const verdict = verdictOf(answer.text, question);
        if (verdict !== undefined) {
          return verdict;
        }
        attempts.push({ address: address.url, problem: "gave an answer that is not a verdict" });
        break;
      }
      attempts.push({ address: address.url, problem: answer.problem });
      if (options.signal?.aborted || !answer.next) { // that the caller gave up is no fault of the address
        break;
      }
      address.restUntil = performance.now() + rest;
    }
    throw new UndecidedError(attempts);
  }

  /** The addresses in the order to try them: as configured, resting ones last. Whoever finds a rest over probes the address for everybody. */
  #line(): readonly Address[] {
    const now = performance.now();
    const first: Address[] = [], last: Address[] = [];
    for (const a of this.#addresses) {
      if (a.restUntil > now) {
        last.push(a);
      } else {
        if (a.restUntil > 0) {
          a.restUntil = now + rest;
        }
        first.push(a);
      }
    }
    return [...first, ...last];
  }

  /** Puts the question to one address, within its share of the time. */
  async #ask(url: string, body: string, share: number, signal: AbortSignal | undefined): Promise<Try> {
    const ending = new AbortController();
    let late = false;
    const timer = setTimeout(() => { late = true; ending.abort(); }, Math.max(share, 0));
    const giveUp = () => ending.abort();
    signal?.addEventListener("abort", giveUp, { once: true });
    if (signal?.aborted) {
      giveUp();
    }
    try {
      for (let tries = 1; ; tries++) {
        try {
          return await this.#exchange(url, body, ending.signal);
        } catch (error) {
          // To verify twice does no harm: a pooled connection that the server had closed meanwhile is replaced.
          if (ending.signal.aborted || tries === 3 || !stale.has(systemCode(error))) {
            throw error;
          }
        }
      }
    } catch (error) {
      // The runtime's own errors may quote what was sent or received; nothing of them is kept but a system code.
      const problem = late ? "gave no answer in time" : signal?.aborted ? "was asked in vain: the caller gave up" : `could not be asked (${systemCode(error)})`;
      return { problem, next: true };
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", giveUp);
    }
  }

  async #exchange(url: string, body: string, signal: AbortSignal): Promise<Try> {
    const fetch = this.#fetch;
    const response = await fetch(url, {
      method: "POST",
      headers: {
        "Content-Type": "application/json", "Accept": "application/json",
        ...(this.#token && { Authorization: `Bearer ${this.#token}` }),
      },
      body,
      redirect: "manual", // one that is followed would carry the secret to a place nobody configured
      signal,
    });
    const text = await read(response); // to its end, so that the connection can be used again
    if (response.status !== 200) {
      return { problem: `answered ${response.status}${hint(response.status)}`, next: response.status === 503 };
    }
    return { text };
  }
}

/** What an address must be. */
function origin(address: string, i: number): string {
  const wrong = new TypeError(`keyward: addresses[${i}] must have the form http://host:port or https://host:port`);
  let url: URL;
  try {
    url = new URL(address);
  } catch {
    throw wrong;
  }
  if (!/^https?:$/.test(url.protocol) || url.username || url.password || url.pathname !== "/" || url.search || url.hash || /[\s?#]/.test(address)) {
    throw wrong;
  }
  return url.origin;
}

/** Codes of a connection that had died before it was used. */
const stale = new Set(["UND_ERR_SOCKET", "ECONNRESET", "EPIPE"]);

/** The system's code of an error of fetch, such as ECONNREFUSED. */
function systemCode(error: unknown): string {
  for (let e = error, depth = 0; typeof e === "object" && e !== null && depth < 4; depth++) {
    const { code, cause } = e as { code?: unknown; cause?: unknown };
    if (typeof code === "string" && /^[A-Z][A-Z0-9_]{1,39}$/.test(code)) {
      return code;
    }
    e = cause;
  }
  return "no answer";
}

function hint(status: number): string {
  switch (true) {
    case status === 401 || status === 403: return ": check the token";
    case status === 404: return ": is this Keyward's verification listener?";
    case status >= 300 && status < 400: return ": redirects are not followed";
    default: return "";
  }
}

/** Returns an answer's body, empty when it is longer than any verdict. */
async function read(response: Response): Promise<string> {
  const decoder = new TextDecoder();
  let text = "", size = 0;
  const reader = response.body?.getReader();
  for (let part = await reader?.read(); part && !part.done; part = await reader?.read()) {
    size += part.value.byteLength;
    if (size > answerLimit) {
      await reader?.cancel();
      return "";
    }
    text += decoder.decode(part.value, { stream: true });
  }
  return text + decoder.decode();
}

/** Turns the answer to a question into a verdict. One that contradicts itself or the question decides nothing: undefined. */
function verdictOf(text: string, question: VerifyRequest): Verdict | undefined {
  let answer: Partial<Record<keyof Schemas["Verdict"], unknown>>;
  try {
    answer = JSON.parse(text);
  } catch {
    return undefined; // the parser's error might quote it
  }
  if (typeof answer !== "object" || answer === null || Array.isArray(answer)) {
    return undefined;
  }
  const { valid, reason } = answer;
  if (typeof valid !== "boolean" || typeof reason !== "string" || reason === "" || valid !== (reason === "valid")) {
    return undefined;
  }
  for (const name of ["api_key_id", "organization_id", "env", "key_name", "expires_at", "connected_account_id"] as const) {
    if (answer[name] != null && typeof answer[name] !== "string") {
      return undefined;
    }
  }
  if (answer.payments_enabled != null && typeof answer.payments_enabled !== "boolean") {
    return undefined;
  }
  if (answer.expires_at != null && Number.isNaN(Date.parse(answer.expires_at as string))) {
    return undefined;
  }
  const { valid: _, reason: __, ...members } = answer;
  const identity = Object.fromEntries(Object.entries(members).filter(([, value]) => value != null && value !== "")) as Partial<Identity>;
  if (!valid) {
    return { valid, reason, identity };
  }
  const whole = { ...identity, key_name: identity.key_name ?? "", payments_enabled: identity.payments_enabled === true };
  if (!complete(whole) || question.env && whole.env !== question.env ||
    (whole.connected_account_id ?? "") !== (question.connected_account_id ?? "") || whole.connected_account_id === notAnAccount) {
    return undefined;
  }
  return { valid, reason: "valid", identity: whole };
}

function complete(i: Partial<Identity>): i is Identity {
  return Boolean(i.api_key_id && i.organization_id) && (i.env === "live" || i.env === "test");
}
