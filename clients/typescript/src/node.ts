import type { IncomingMessage } from "node:http";

import { isIdentity, type Values } from "./credential.js";

/** Every value of a header in the order sent. IncomingMessage.headers keeps only the first of several Authorization headers. */
export function valuesOf(request: IncomingMessage, header: string): Values {
  const raw = request.rawHeaders;
  return raw.filter((_, i) => i % 2 === 1 && raw[i - 1]?.toLowerCase() === header);
}

/** Removes X-Keyward-* headers, wherever Node shows them. */
export function removeIdentity(request: IncomingMessage): void {
  if (!request.rawHeaders.some((name, i) => i % 2 === 0 && isIdentity(name))) {
    return;
  }
  const { headers, headersDistinct, rawHeaders } = request;
  for (const list of [headers, headersDistinct ?? {}]) { // HTTP/2's request has no headersDistinct
    for (const name of Object.keys(list).filter(isIdentity)) {
      delete list[name];
    }
  }
  for (let i = rawHeaders.length - 2; i >= 0; i -= 2) {
    if (isIdentity(rawHeaders[i] ?? "")) {
      rawHeaders.splice(i, 2);
    }
  }
}
