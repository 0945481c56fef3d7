// The requests of this page to its own server.

/** An answer that says why not, or no answer at all (`status` 0). */
export class Problem extends Error {
  constructor(status, members) {
    super(members.detail ?? members.title ?? 'the answer says nothing more');
    this.status = status;
    this.title = members.title ?? '';
    this.members = members;
  }
}

/** Fires `over` when a session ends that was there. */
export const session = new EventTarget();

/** A path of the API; texts in it are encoded. */
export const path = (parts, ...texts) => String.raw({ raw: parts }, ...texts.map(encodeURIComponent));

/** `GET`: the body, with its version as `etag` beside it. */
export async function get(url, { query = {}, signal } = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== '');
  const search = new URLSearchParams(given).toString();
  const response = await ask(search ? `${url}?${search}` : url, { signal });
  return { body: await json(response), etag: response.headers.get('etag') };
}

export async function post(url, body, { etag, signal } = {}) {
  return send('POST', url, body, { etag, signal });
}

export async function remove(url, body) {
  return send('DELETE', url, body, {});
}

async function send(method, url, body, { etag, signal }) {
  const headers = { 'Content-Type': 'application/json', ...(etag ? { 'If-Match': etag } : {}) };
  const response = await ask(url, { method, headers, body: JSON.stringify(body ?? {}), signal });
  return response.status === 204 ? null : json(response);
}

async function ask(url, options) {
  let response;
  try {
    response = await fetch(url, { credentials: 'same-origin', cache: 'no-store', redirect: 'error', ...options });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem(0, { title: 'No answer', detail: 'The proxy does not answer. It may be restarting, or the network is gone.' });
  }
  if (response.ok) return response;
  const problem = new Problem(response.status, await members(response));
  if (response.status === 401 && !url.startsWith('/api/session')) session.dispatchEvent(new Event('over'));
  throw problem;
}

async function json(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem(0, { title: 'Cut off', detail: 'The answer ended before it was complete.' });
  }
}

/** What the problem document says; something between us and the proxy may have answered in its place. */
async function members(response) {
  const title = response.statusText || `Status ${response.status}`;
  try {
    return { title, ...(await response.json()) };
  } catch {
    return { title, detail: `The answer has status ${response.status}, and no more to say.` };
  }
}
