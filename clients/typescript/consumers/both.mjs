// A program that loads the package as ES modules and as CommonJS.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

import { UndecidedError } from "@keyward/client";

const require = createRequire(import.meta.url);
const common = require("@keyward/client");

assert.notEqual(common.UndecidedError, UndecidedError);
assert.ok(new common.UndecidedError([]) instanceof UndecidedError);
assert.ok(new UndecidedError([]) instanceof common.UndecidedError);
assert.ok(!(new Error("") instanceof UndecidedError));
class Derived extends UndecidedError {}
assert.ok(new Derived([]) instanceof UndecidedError);
assert.ok(!(new UndecidedError([]) instanceof Derived));
for (const entry of ["express", "fastify", "hono"]) {
  assert.equal(typeof require(`@keyward/client/${entry}`).keyward, "function");
  assert.equal(typeof (await import(`@keyward/client/${entry}`)).keyward, "function");
}
assert.throws(() => require("@keyward/client/dist/cjs/client.js"), { code: "ERR_PACKAGE_PATH_NOT_EXPORTED" });
console.log("used both");
