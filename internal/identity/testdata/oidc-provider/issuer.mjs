// An OpenID provider for TestC1OIDCProvider. It prints its URL, and ends with its standard input.
// POST /rotate replaces its keys; GET /id_token returns an ID token.
import http from 'node:http';
import { Provider } from 'oidc-provider';
import { exportJWK, generateKeyPair } from 'jose';

const audience = 'https://keys.example.com';
const client = {
  client_id: 'dashboard',
  client_secret: 'not-a-secret',
  grant_types: ['client_credentials', 'authorization_code'],
  redirect_uris: ['http://127.0.0.1/'],
  id_token_signed_response_alg: 'ES256',
};

async function key(alg, kid) {
  const { privateKey } = await generateKeyPair(alg, { extractable: true });
  return { ...(await exportJWK(privateKey)), alg, kid, use: 'sig' };
}

let generation = 0;
async function provider(issuer) {
  generation++;
  return new Provider(issuer, {
    clients: [client],
    jwks: { keys: [await key('ES256', `es-${generation}`), await key('RS256', `rs-${generation}`)] },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_ctx, resource) => ({
          scope: 'keys:manage keys:read',
          audience,
          accessTokenFormat: resource.endsWith('opaque') ? 'opaque' : 'jwt',
          jwt: { sign: { alg: resource.endsWith('rs256') ? 'RS256' : 'ES256' } },
        }),
      },
    },
    extraTokenClaims: () => ({ 'https://example.com/app': { organizations: ['org_acme'] } }),
  });
}

const server = http.createServer(async (req, res) => {
  if (req.url === '/rotate') {
    current = await provider(issuer);
    res.end();
  } else if (req.url === '/id_token') {
    const found = await current.Client.find(client.client_id);
    const token = new current.IdToken({ sub: 'ann', org_id: 'org_acme' }, { client: found, ctx: undefined });
    token.scope = 'openid';
    res.end(await token.issue({ use: 'idtoken' }));
  } else {
    current.callback()(req, res);
  }
});
let issuer;
let current;
server.listen(0, '127.0.0.1', async () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  current = await provider(issuer);
  console.log(issuer);
});
process.stdin.resume().on('end', () => process.exit(0));
