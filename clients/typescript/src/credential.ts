import { Buffer } from "node:buffer";

import { notAnAccount } from "./client.js";

/** The values of one request header, each as it was sent; none when it was not. */
export type Values = readonly string[];

/**
 * The one secret that Authorization and X-API-Key carry. Two that differ, several Authorization headers, and a scheme or form that is not
 * taken are refused, so that nobody behind the middleware reads another credential than the one that was verified.
 */
export function secretOf(authorization: Values, apiKeys: Values): string | undefined {
  if (authorization.length > 1) {
    return undefined;
  }
  let secret: string | undefined;
  if (authorization[0] !== undefined) {
    secret = bearer(authorization[0]) ?? basicUser(authorization[0]);
    if (secret === undefined) {
      return undefined;
    }
  }
  for (const v of apiKeys) {
    secret ??= v;
    if (v === "" || v !== secret) {
      return undefined;
    }
  }
  return secret;
}

/** The scheme of an Authorization header, in lower case, and what follows it without spaces around it. */
function credentials(authorization: string): [scheme: string, rest: string] {
  const space = authorization.indexOf(" ");
  return space < 0 ? ["", ""] : [authorization.slice(0, space).toLowerCase(), authorization.slice(space).replace(/^ +| +$/g, "")];
}

function bearer(authorization: string): string | undefined {
  const [scheme, token] = credentials(authorization);
  return scheme === "bearer" && token !== "" && !/[ \t,]/.test(token) ? token : undefined;
}

/** The user name of Basic credentials without a password (RFC 7617). */
function basicUser(authorization: string): string | undefined {
  const [scheme, encoded] = credentials(authorization);
  if (scheme !== "basic") {
    return undefined;
  }
  const plain = Buffer.from(encoded, "base64");
  if (plain.toString("base64") !== encoded) { // the decoder takes whatever comes
    return undefined;
  }
  return /^([^:]+):$/.exec(plain.toString("latin1"))?.[1];
}

/**
 * The account that X-Connected-Account-ID narrows the request to, if any. An empty header and several name no account, which is
 * refused: the caller meant one, and must not reach the organization's own data instead.
 */
export function accountOf(values: Values): string | undefined {
  return values.length === 0 ? undefined : values.length === 1 && values[0] ? values[0] : notAnAccount;
}

/**
 * Whether a header is one that Keyward alone may set, or reads as one: CGI cannot tell underscores from hyphens, and some of its kin
 * nothing from them that is neither a letter nor a digit.
 */
export function isIdentity(header: string): boolean {
  return /^x[^a-z0-9]keyward[^a-z0-9]/i.test(header);
}

/** The form of a secret under any deployment's word. */
const shape = /[a-z0-9]_(live|test)_[0-9A-Za-z]{32}/;

/** Whether text holds a secret, however often it is percent-encoded. */
export function holdsSecret(text: string): boolean {
  for (let i = 0; i < 20; i++) {
    if (shape.test(text)) {
      return true;
    }
    const decoded = text.replace(/%([0-7][0-9a-f])/gi, (_, hex: string) => String.fromCharCode(parseInt(hex, 16)));
    if (decoded === text) {
      return false;
    }
    text = decoded;
  }
  return shape.test(text);
}
