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
  const { headers, headersDistinct } = request;
  for (const list of [headers, headersDistinct]) {
    for (const name of Object.keys(list).filter(isIdentity)) {
      delete list[name];
    }
  }
  const raw = request.rawHeaders;
  request.rawHeaders = raw.filter((_, i) => !isIdentity(raw[i - i % 2] ?? ""));
}
