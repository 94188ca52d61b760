// The page's one stream: it says when it is lost, comes back by itself, and resumes where it stopped.

import { get } from "./api.js";
import { $, el, fill } from "./dom.js";

const WAITS = [1, 2, 4, 8, 15, 15, 30];
const SILENCE = 25000; // ms without a sign of life after which the stream counts as lost
const AWAY = 30000; // ms that a page may be in the background: browsers allow few streams to one server

/** hello: called at each (re)connection, to fetch what may have changed. The other handlers get an event's data. */
export class Stream {
  constructor(address, handlers) {
    this.address = address;
    this.handlers = handlers;
    this.last = null;
    this.tries = 0;
    this.lost = false;
    this.leaving = false;
    document.addEventListener("visibilitychange", () => this.seen());
    addEventListener("pagehide", () => { this.leaving = true; this.close(); });
    addEventListener("pageshow", (event) => { if (event.persisted) { this.leaving = false; this.open(); } });
    addEventListener("online", () => this.retry());
    this.open();
  }

  open() {
    this.close();
    const after = this.last === null ? "" : `${this.address.includes("?") ? "&" : "?"}after=${this.last}`;
    const source = new EventSource(this.address + after);
    this.source = source;
    source.addEventListener("error", () => { if (source === this.source) this.fail(); });
    for (const name of new Set(["hello", "alive", "closing", ...Object.keys(this.handlers)])) {
      source.addEventListener(name, (event) => this.told(name, event));
    }
    this.watch();
  }

  told(name, event) {
    if (event.lastEventId) this.last = Number(event.lastEventId);
    this.watch();
    if (name === "closing") return this.fail("The server is shutting down.");
    if (name === "hello") this.back();
    this.handlers[name]?.(JSON.parse(event.data));
  }

  /** Half-open connections raise no error: silence does. */
  watch() {
    clearTimeout(this.guard);
    this.guard = setTimeout(() => this.fail(), SILENCE);
  }

  back() {
    this.tries = 0;
    clearTimeout(this.timer);
    clearInterval(this.count);
    if (this.lost) $("#lost")?.remove();
    this.lost = false;
    state("live", "Live");
  }

  fail(why = "The connection to the server is lost.") {
    this.close();
    if (this.leaving || document.hidden) return;
    const wait = WAITS[Math.min(this.tries, WAITS.length - 1)];
    this.tries += 1;
    this.due = Date.now() + wait * 1000;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.retry(), wait * 1000);
    state("lost", "Offline");
    this.tell(why);
    if (this.tries >= 2) get("/data/runs").catch((error) => { if (error.status === 401) this.out(); });
  }

  retry() {
    if (this.lost && !this.ended) this.open();
  }

  tell(why) {
    this.lost = true;
    const left = el("span", { text: "" });
    const again = el("button", { type: "button", text: "Try now", click: () => this.retry() });
    const text = el("div", {}, el("strong", { text: `${why} ` }), el("span", { text: "What you see is as it was. " }), left);
    const banner = $("#lost") ?? document.body.appendChild(el("div", { id: "lost", class: "notice bad lost-banner", role: "alert" }));
    fill(banner, text, again);
    clearInterval(this.count);
    const say = () => { left.textContent = `Trying again in ${Math.max(0, Math.round((this.due - Date.now()) / 1000))} s.`; };
    say();
    this.count = setInterval(say, 1000);
  }

  out() {
    this.ended = true;
    this.close();
    clearTimeout(this.timer);
    clearInterval(this.count);
    fill($("#lost"), el("div", {}, el("strong", { text: "You are logged out." })), el("a", { class: "button", href: `/login?next=${encodeURIComponent(location.pathname)}`, text: "Log in" }));
  }

  seen() {
    clearTimeout(this.sleep);
    if (document.hidden) this.sleep = setTimeout(() => { this.close(); state("wait", "Paused"); }, AWAY);
    else if (!this.source && !this.ended) this.open();
  }

  close() {
    clearTimeout(this.guard);
    this.source?.close();
    this.source = null;
  }
}

function state(kind, words) {
  const shown = $("#link-state");
  if (!shown) return;
  shown.dataset.state = kind;
  shown.textContent = words;
}
