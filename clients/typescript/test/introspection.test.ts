// An independent OAuth client introspects (RFC 7662).
import assert from "node:assert/strict";
import { webcrypto } from "node:crypto";
import { test } from "node:test";

import { setup } from "./setup.js";

const web = globalThis as { crypto?: unknown };
web.crypto ??= webcrypto; // Node 18 has it under this name alone
const oauth = await import("oauth4webapi");

const { secrets } = setup;
const server = (internal: string) => ({ issuer: internal, introspection_endpoint: `${internal}/v1/introspect` });
const client = { client_id: "payments: the gateway" };

/** An internal token as the caller's own bearer token (RFC 7662 section 2.1). */
const bearer = (token: string): import("oauth4webapi").ClientAuth => (_as, _client, _body, headers) => { headers.set("Authorization", `Bearer ${token}`); };

function ask(token: string, more: Record<string, string> = {}, auth = oauth.ClientSecretBasic(setup.token), internal = setup.internal): Promise<Response> {
  return oauth.introspectionRequest(server(internal), client, auth, token, { additionalParameters: more, [oauth.allowInsecureRequests]: true });
}

const introspect = async (...asked: Parameters<typeof ask>) => oauth.processIntrospectionResponse(server(asked[3] ?? setup.internal), client, await ask(...asked));

// V4, R3: as an OAuth client, by a bearer token, and by nothing where no token is asked for.
test("V4 active", async () => {
  const now = Date.now() / 1000;
  for (const [internal, key, auths] of [
    [setup.internal, secrets.live, [oauth.ClientSecretBasic(setup.token), bearer(setup.token)]],
    [setup.open, setup.open_live, [oauth.ClientSecretBasic("anything"), bearer("anything"), oauth.None()]],
  ] as const) {
    for (const auth of auths) {
      const { iat = 0, exp = 0, ...found } = await introspect(key, {}, auth, internal);
      assert.deepEqual(found, {
        active: true, sub: "org_1", token_type: "Bearer", env: "live", payments_enabled: true, client_id: found.client_id,
      });
      assert.ok(iat <= now && iat > now - 600 && exp === iat + 30 * 24 * 3600, `iat ${iat}, exp ${exp}`);
    }
  }
  const whole = await introspect(secrets.live);
  assert.equal(whole.client_id, secrets.live_id);
  const narrowed = await introspect(secrets.live, { connected_account_id: secrets.account, env: "live", token_type_hint: "access_token" });
  assert.equal(narrowed["connected_account_id"], secrets.account);
  const test = await introspect(secrets.test);
  assert.equal(test["payments_enabled"], false);
});

// V4: exactly {"active":false} for anything not acceptable.
test("V4 inactive", async (t) => {
  for (const [name, token, more] of [
    ["revoked", secrets.revoked], ["expired", secrets.expired], ["malformed", secrets.malformed], ["unknown", secrets.unknown],
    ["inactive organization", secrets.inactive], ["other environment", secrets.live, { env: "test" }],
    ["foreign child", secrets.live, { connected_account_id: secrets.foreign_account }], ["no account", secrets.live, { connected_account_id: "" }],
  ] as [string, string, Record<string, string>?][]) {
    await t.test(name, async () => {
      const answer = await ask(token, more);
      assert.equal(answer.headers.get("Cache-Control"), "no-store");
      assert.equal(await answer.clone().text(), `{"active":false}`);
      assert.deepEqual(await oauth.processIntrospectionResponse(server(setup.internal), client, answer), { active: false });
    });
  }
});

// R3: a caller that is not one of the deployment's learns nothing, also about a good secret.
test("R3 callers", async (t) => {
  for (const [name, auth] of Object.entries({
    "none": oauth.None(), "wrong secret": oauth.ClientSecretBasic(setup.token + "x"), "wrong bearer": bearer(setup.token + "x"),
    "in the body": oauth.ClientSecretPost(setup.token), "the secret itself": bearer(secrets.live),
  })) {
    await t.test(name, async () => {
      const answer = await ask(secrets.live, {}, auth);
      assert.equal(answer.status, 401);
      await assert.rejects(oauth.processIntrospectionResponse(server(setup.internal), client, answer), (error) => {
        assert.ok(error instanceof oauth.WWWAuthenticateChallengeError);
        assert.deepEqual(error.cause.map((challenge) => challenge.scheme), ["bearer", "basic"]);
        return true;
      });
    });
  }
});
