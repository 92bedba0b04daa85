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
const address = (sub) => (sub.includes("@") ? sub.split("+")[0] : `${sub.split("+")[0]}@example.org`);
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
  // As Entra ID writes it: the address in the ID token, and not a word of whether it is verified.
  entra: (claims) => signed({ ...claims, email: address(claims.sub), ver: "2.0", tid: "t", oid: "o" }),
  edov: (claims) => signed({ ...claims, email: address(claims.sub), xms_edov: "1" }),
  noedov: (claims) => signed({ ...claims, email: address(claims.sub), xms_edov: false }),
  unknown: (claims) => signed(claims, stranger.privateKey, { kid: "unknown" }),
};

// What userinfo says of "eve+…", where that is not a verified address. EMAIL stands for it.
const SAYS = {
  unverified: { email: "EMAIL", email_verified: false },
  text: { email: "EMAIL", email_verified: "true" },
  Text: { email: "EMAIL", email_verified: "True" },
  number: { email: "EMAIL", email_verified: 1 },
  untrue: { email: "EMAIL", email_verified: "false" },
  zero: { email: "EMAIL", email_verified: 0 },
  yes: { email: "EMAIL", email_verified: "yes" },
  list: { email: "EMAIL", email_verified: [true] },
  silent: { email: "EMAIL" },
  null: { email: "EMAIL", email_verified: null },
  entra: { email: "EMAIL" },
  edov: {},
  noedov: {},
  noemail: {},
  upn: { upn: "EMAIL" },
  username: { preferred_username: "EMAIL" },
  noaddress: { preferred_username: "ada", email: "ada" },
  both: { email: "eve@elsewhere.example", email_verified: false, preferred_username: "EMAIL" },
};

const provider = new Provider(issuer, {
  clients: ["natskit", "other"].map((client_id) => ({ client_id, client_secret: secret, redirect_uris: [redirect_uri] })),
  jwks: { keys: [{ ...(await exportJWK(privateKey)), kid, use: "sig", alg: "RS256" }] },
  cookies: { keys: ["for tests"] },
  pkce: { required: () => true },
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["preferred_username", "upn"] },
  ttl: { Session: 600, Interaction: 600, Grant: 600, AccessToken: 600, IdToken: 600 },
  async findAccount(_, sub) {
    const special = sub.split("+")[1];
    const email = address(sub);
    const wording = Object.entries(SAYS[special] ?? { email: "EMAIL", email_verified: true });
    const said = Object.fromEntries(wording.map(([claim, value]) => [claim, value === "EMAIL" ? email : value]));
    return { accountId: sub, claims: (use) => ({ sub: special === "userinfo" && use === "userinfo" ? "x" : sub, ...said }) };
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
