// An OpenID provider for tests: node server.mjs PORT CONFIG. CONFIG is a JSON file: {"redirect_uri", "secret"}.
//
// It is oidc-provider with its own pages for signing in: any name and password will do, and the name decides what is
// said of the person. "eve+aud" gets an ID token that was tampered with, see LIES. Its keys are new with every start.
import { readFileSync } from "node:fs";
import Provider from "oidc-provider";
import { SignJWT, UnsecuredJWT, decodeJwt, exportJWK, generateKeyPair } from "jose";

const [port, file] = process.argv.slice(2);
const { redirect_uri, secret } = JSON.parse(readFileSync(file, "utf8"));
const issuer = `http://127.0.0.1:${port}`;
const { privateKey } = await generateKeyPair("RS256", { extractable: true });
const stranger = await generateKeyPair("RS256");
const kid = `key-${Date.now()}`;
const now = () => Math.floor(Date.now() / 1000);

const signed = (claims, key = privateKey, header = {}) =>
  new SignJWT(claims).setProtectedHeader({ alg: "RS256", kid, ...header }).sign(key);
const LIES = {
  aud: (claims) => signed({ ...claims, aud: "other" }),
  audiences: (claims) => signed({ ...claims, aud: ["natskit", "other"], azp: "other" }),
  iss: (claims) => signed({ ...claims, iss: "https://evil.example" }),
  nonce: (claims) => signed({ ...claims, nonce: "another" }),
  nononce: ({ nonce, ...claims }) => signed(claims),
  old: (claims) => signed({ ...claims, iat: now() - 4000, exp: now() - 400 }),
  future: (claims) => signed({ ...claims, iat: now() + 400 }),
  skewed: (claims) => signed({ ...claims, iat: now() + 40, exp: now() + 4000 }),
  nosub: ({ sub, ...claims }) => signed(claims),
  none: (claims) => new UnsecuredJWT(claims).encode(),
  hmac: (claims) => signed(claims, new TextEncoder().encode(secret), { alg: "HS256" }),
  stranger: (claims) => signed(claims, stranger.privateKey),
  unknown: (claims) => signed(claims, stranger.privateKey, { kid: "unknown" }),
};

const provider = new Provider(issuer, {
  clients: ["natskit", "other"].map((client_id) => ({ client_id, client_secret: secret, redirect_uris: [redirect_uri] })),
  jwks: { keys: [{ ...(await exportJWK(privateKey)), kid, use: "sig", alg: "RS256" }] },
  cookies: { keys: ["for tests"] },
  pkce: { required: () => true },
  claims: { openid: ["sub"], email: ["email", "email_verified"] },
  ttl: { Session: 600, Interaction: 600, Grant: 600, AccessToken: 600, IdToken: 600 },
  async findAccount(_, sub) {
    const [name, special] = sub.split("+");
    const email_verified = special === "unverified" ? false : special === "text" ? "true" : true;
    const email = special === "noemail" ? {} : { email: `${name}@example.org`, email_verified };
    return { accountId: sub, claims: (use) => ({ sub: special === "userinfo" && use === "userinfo" ? "x" : sub, ...email }) };
  },
});
provider.use(async (context, next) => {
  await next();
  if (context.oidc?.route !== "token" || !context.body?.id_token) return;
  const claims = decodeJwt(context.body.id_token);
  const lie = LIES[claims.sub.split("+")[1]];
  if (lie) context.body.id_token = await lie(claims);
});
provider.listen(Number(port), "127.0.0.1", () => console.log(`${issuer} is ready`));
