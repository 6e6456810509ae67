// Calls the API. The tokens are in memory only: closing or reloading the page ends the log-in.

const BASE = "/api/v1";
// Renew this long before a token ends.
const MARGIN_MS = 60_000;

// For the question whether a certificate names a user. The page starts without an answer too.
const CERTIFICATE_MS = 10_000;

// The log-in. A renewal replaces its tokens; the object stays, so an answer that comes after another log-in is not kept.
// It has no tokens if the browser's certificate names the user.
let session = null;
let onEnd = () => {};

// An error of the API, or of the connection to it.
export class ApiError extends Error {
  constructor(status, { code, details, request_id: requestId }) {
    super(details || code);
    Object.assign(this, { status, code, requestId });
  }
}

// Sets what happens when the log-in has ended. The callback gets whether it was by a certificate.
export function whenEnded(callback) {
  onEnd = callback;
}

async function send(method, path, { body, headers, signal, token, keepalive } = {}) {
  const all = { Accept: "application/json", ...headers };
  if (token) all.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(BASE + path, {
      method,
      headers: all,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      keepalive,
      cache: "no-store",
      // With "omit" browsers show no certificate (Fetch standard; Chromium does). There are no cookies.
      credentials: "same-origin",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, {
      code: "no_connection",
      details: "The service does not answer. Check that it runs and that this computer can reach it.",
    });
  }
  const text = await response.text();
  let json = null;
  try {
    json = text ? JSON.parse(text) : null;
  } catch {
    throw new ApiError(response.status, {
      code: "incomplete",
      details: "The answer of the service is incomplete. Try again; its log has the cause.",
    });
  }
  if (!response.ok) {
    const wait = Number(response.headers.get("Retry-After"));
    const error = new ApiError(
      response.status,
      json ?? { code: `http_${response.status}`, details: response.statusText },
    );
    if (wait) error.retryAfter = wait;
    throw error;
  }
  return json;
}

function tokensOf(answer) {
  const seconds = answer.expires_in ?? 3600;
  return {
    token: answer.token,
    refreshToken: answer.refresh_token,
    renewAt: Date.now() + seconds * 1000 - MARGIN_MS,
  };
}

export async function logIn(username, password) {
  session = tokensOf(await send("POST", "/auth/login", { body: { username, password, refresh: true } }));
}

// The user whom the certificate of this browser names; `null` if there is none.
export async function certificateUser() {
  const { user } = await send("GET", "/auth/certificate", { signal: AbortSignal.timeout(CERTIFICATE_MS) });
  return user;
}

export function useCertificate() {
  session = { renewAt: Infinity };
}

export function isByCertificate() {
  return session !== null && session.token === undefined;
}

// Ends the log-in at the service too. `keepalive`: the page is being closed.
export async function logOut({ keepalive = false } = {}) {
  if (!session) return;
  const { token } = session;
  session = null;
  if (token) await send("POST", "/auth/logout", { token, keepalive });
}

function end() {
  const wasByCertificate = isByCertificate();
  session = null;
  onEnd(wasByCertificate);
}

// A refresh token can be used once, so requests share one renewal. Without an answer it is sent again: if it was used,
// the service refuses it and the log-in has ended.
function renew(own) {
  own.renewing ??= (async () => {
    const refresh = () => send("POST", "/auth/refresh", { body: { refresh_token: own.refreshToken } });
    const answer = await refresh().catch((error) => {
      if (error.status !== 0) throw error;
      return refresh();
    });
    Object.assign(own, tokensOf(answer));
  })().finally(() => {
    own.renewing = null;
  });
  return own.renewing;
}

export async function request(method, path, options = {}) {
  const own = session;
  if (!own) throw new ApiError(401, { code: "unauthorized", details: "The log-in has ended." });
  try {
    if (Date.now() >= own.renewAt) await renew(own);
    return await send(method, path, { ...options, token: own.token });
  } catch (error) {
    if (error.status === 401 && session === own) end();
    throw error;
  }
}

export function get(path, signal) {
  return request("GET", path, { signal });
}

// The path below the base path, from its parts. A part that leads elsewhere cannot be encoded.
export function path(...parts) {
  if (parts.some((part) => part === "." || part === "..")) {
    throw new ApiError(404, { code: "not_found", details: "There is nothing at this address." });
  }
  return `/${parts.map(encodeURIComponent).join("/")}`;
}
