// What the Go test that runs these has started: a real server, and keys in every state.
export interface Setup {
  internal: string; // asks for token
  token: string;
  open: string; // another server's, which asks for none
  public: string;
  frozen: string; // takes connections and answers nothing
  secrets: {
    organization: string; account: string; foreign_account: string;
    live: string; live_id: string; test: string; revoked: string; expired: string; unknown: string; malformed: string; inactive: string;
  };
  open_live: string; // a good secret of the open server
  doomed: { key: string; api_key_id: string; jwt: string }[]; // keys to revoke, one a test
}

const given = process.env["KEYWARD_TEST"];
if (!given) {
  throw new Error("these tests are run by: go test ./internal/doors");
}
export const setup: Setup = JSON.parse(given);

/** How long what should take milliseconds may take, in milliseconds. */
export const patience = 20_000;

/** Revokes a key through the management API and returns once that has answered 200. */
export async function revoke(doomed: Setup["doomed"][number]): Promise<void> {
  const response = await fetch(`${setup.public}/api/v1/auth/api-keys/${doomed.api_key_id}/revoke`, {
    method: "POST", headers: { Authorization: `Bearer ${doomed.jwt}` },
  });
  if (response.status !== 200) {
    throw new Error(`revoke answered ${response.status}`);
  }
}
