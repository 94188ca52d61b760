// Questions to the server, and actions.

export class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const OUT = "You are logged out.";

/** The JSON at `address`. Throws Failure with a sentence. */
export async function get(address) {
  let answer;
  try {
    answer = await fetch(address, { headers: { Accept: "application/json" }, credentials: "same-origin", redirect: "manual" });
  } catch {
    throw new Failure(0, "The server cannot be reached.");
  }
  return read(answer);
}

/** Changes something. The token shows that the wish comes from this page. */
export async function act(method, address, fields = {}) {
  const body = new URLSearchParams(Object.entries(fields).filter(([, value]) => value !== "" && value !== null));
  const headers = { Accept: "application/json", "X-CSRF-Token": document.body.dataset.csrf ?? "" };
  if (method !== "DELETE") headers["Content-Type"] = "application/x-www-form-urlencoded";
  try {
    return await read(await fetch(address, { method, headers, body: method === "DELETE" ? undefined : body, credentials: "same-origin", redirect: "manual" }));
  } catch (error) {
    throw error instanceof Failure ? error : new Failure(0, "The server cannot be reached: nothing was changed.");
  }
}

async function read(answer) {
  if (answer.type === "opaqueredirect" || answer.status === 401) throw new Failure(401, OUT);
  let found = null;
  try { found = await answer.json(); } catch { /* an answer without words */ }
  if (answer.ok) return found;
  const said = found?.error?.message ?? found?.error ?? found?.detail;
  throw new Failure(answer.status, typeof said === "string" ? said : `The server answered ${answer.status}.`);
}

export const runPage = (id) => `/runs/${encodeURIComponent(id)}`;
export const runData = (id) => `/data/runs/${encodeURIComponent(id)}`;
export const role = () => Number(document.body.dataset.role ?? 0);
export const OPERATOR = 3;
export const ADMIN = 4;
export const mayAct = () => role() >= OPERATOR && document.body.dataset.acts === "1";
