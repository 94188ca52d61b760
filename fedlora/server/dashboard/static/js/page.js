// What all pages have: times in the reader's zone, keys, dialogs, ages that grow.

import { act } from "./api.js";
import { $, $$, el, fill, setText } from "./dom.js";
import { ago, ahead, exact, moment, when } from "./format.js";

/** A time with its age or its moment, kept up to date. how: "ago", "ahead" or "moment". */
export function time(date, how = "ago") {
  if (!date) return el("span", { class: "muted", text: "–" });
  const words = { ago, ahead, moment }[how];
  return el("time", { datetime: date.toISOString(), title: exact(date), data: { how }, text: words(date) });
}

function tick() {
  for (const node of $$("time[datetime]")) {
    const date = when(node.getAttribute("datetime"));
    const words = { ago, ahead, moment }[node.dataset.how];
    node.title ||= exact(date);
    if (words && date) setText(node, words(date));
  }
}

function keys(event) {
  const typing = event.target.closest?.("input, select, textarea, [contenteditable]");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const filter = $$("input[data-filter]").find((one) => one.offsetParent !== null);
    if (!filter) return;
    event.preventDefault();
    filter.focus();
    filter.select();
  } else if (event.key === "Escape" && event.target.matches?.("input[data-filter]")) {
    event.target.value = "";
    event.target.dispatchEvent(new Event("input", { bubbles: true }));
    event.target.blur();
  }
}

/** Asks before something is done. Resolves to the form's fields, or to null. fields: elements with names. */
export function ask({ title, text, action, danger = false, fields = [] }) {
  return new Promise((resolve) => {
    const form = el("form", { method: "dialog" },
      el("h2", { text: title }), text ? el("p", { class: "soft", text }) : null, ...fields,
      el("div", { class: "row" },
        el("button", { type: "button", text: "Cancel", click: () => dialog.close("") }),
        el("button", { class: danger ? "danger" : "primary", text: action, value: "yes" })));
    const dialog = el("dialog", { "aria-label": title }, form);
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes" ? Object.fromEntries(new FormData(form)) : null);
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Shows something once: a token, a link. */
export function reveal({ title, text, secret, after = [] }) {
  const copied = el("span", { class: "small muted", role: "status" });
  const copy = el("button", {
    type: "button", class: "primary", text: "Copy",
    click: () => navigator.clipboard?.writeText(secret).then(() => { copied.textContent = "Copied."; }, () => { copied.textContent = "Select it and copy it by hand."; }),
  });
  const dialog = el("dialog", { "aria-label": title }, el("div", { class: "dialog-in" },
    el("h2", { text: title }), el("p", { class: "soft", text }), el("div", { class: "secret", tabindex: "0", text: secret }), ...after,
    el("div", { class: "row" }, copied, el("button", { type: "button", text: "Close", click: () => dialog.close() }), copy)));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => { dialog.remove(); done(); }));
}

export const field = (label, input) => el("label", { class: "field" }, label, input);

/** Says at the top of the page how an action went. */
export function notify(kind, text) {
  const host = $("#said") ?? $("#main").insertBefore(el("div", { id: "said", class: "stack" }), $("#main").firstChild);
  const close = el("button", { type: "button", class: "plain", text: "Dismiss", click: () => note.remove() });
  const note = el("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : "status" }, el("div", { text }), close);
  fill(host, note);
  note.scrollIntoView({ block: "nearest" });
}

/** Does something after asking, and says how it went. Resolves to the answer, or null. */
export async function carryOut(question, method, address, done) {
  const fields = await ask(question);
  if (!fields) return null;
  try {
    const answer = await act(method, address, fields);
    if (done) notify("good", done);
    return answer ?? {};
  } catch (error) {
    notify("bad", error.message);
    return null;
  }
}

/** Where something could not be fetched: says so in its place, with another try. */
export function trouble(host, error, again) {
  fill(host, el("div", { class: "empty", role: "alert" }, el("h2", { text: "This could not be loaded" }), el("p", { text: error.message }),
    el("p", {}, error.status === 401 ? el("a", { class: "button", href: `/login?next=${encodeURIComponent(location.pathname)}`, text: "Log in" }) : el("button", { type: "button", text: "Try again", click: again }))));
}

document.addEventListener("keydown", keys);
document.addEventListener("click", (event) => {
  const row = event.target.closest?.("tr[data-href]");
  if (!row || event.target.closest("a, button, input, label") || getSelection()?.toString()) return;
  if (event.ctrlKey || event.metaKey) open(row.dataset.href); else location.href = row.dataset.href;
});
tick();
setInterval(tick, 1000);
