// Elements without markup in strings: whatever a client or a run is called, it becomes text.

const PACE = 2000; // ms that a page rests between two questions of one kind, however fast rounds are

/** A new element. props: attributes; `class`, `text`, `data` (an object), and functions as listeners (`click`). */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = value;
    else if (name === "data") Object.assign(made.dataset, value);
    else if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const $ = (selector, within = document) => within.querySelector(selector);
export const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

/** Sets a text only where it is another one, so that nothing blinks and selections stay. */
export function setText(node, text) {
  if (node && node.textContent !== text) node.textContent = text;
}

/** Replaces what `host` holds. */
export function fill(host, ...children) {
  host.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return host;
}

/** Calls `work` once, `wait` ms after the last of several calls. */
export function settled(work, wait) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), wait);
  };
}

/** Does `work` `wait` ms after it is asked for, but never sooner than PACE ms after it was last done, nor twice at once. */
export function paced(work, wait) {
  let timer = null;
  let busy = false;
  let again = false;
  let done = 0;
  const run = async () => {
    timer = null;
    busy = true;
    again = false;
    try { await work(); } finally { busy = false; done = Date.now(); if (again) ask(); }
  };
  const ask = () => {
    if (busy) again = true;
    else timer ??= setTimeout(run, Math.max(wait, done + PACE - Date.now()));
  };
  return ask;
}

/** A tag with the colour of its word. */
export const tag = (word, kind = word) => el("span", { class: `tag ${/^[a-z]+$/.test(kind) ? kind : ""}`, text: word });

/** What a list shows when there is nothing in it. */
export const empty = (title, ...lines) =>
  el("div", { class: "empty" }, el("h2", { text: title }), ...lines.map((line) => (typeof line === "string" ? el("p", { text: line }) : line)));

/** Gives a text to the browser as a file. */
export function download(name, text, type = "text/csv") {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** A table as CSV. A text that a spreadsheet could take for a formula gets a quote in front. */
export function csv(head, rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
