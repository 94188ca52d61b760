import { act, get, mayAct, runPage } from "./api.js";
import { $, $$, el, fill, settled } from "./dom.js";
import * as format from "./format.js";
import { ask, field, notify, time } from "./page.js";
import { ENDED, inTrouble, isActive, progress, sent, shortMetric, state, stateTag } from "./rows.js";
import { Stream } from "./stream.js";

const body = $("#runs tbody");
const rows = new Map();
const lines = new Map();
const picked = new Set();
const STEP = 200; // rows that are in the page at first; more come when the end is in sight
let shown = STEP;
let which = "all";
let order = [];

const WHICH = { all: () => true, active: isActive, trouble: inTrouble, done: (row) => ENDED.includes(row.status) };

function line(row) {
  const box = el("input", { type: "checkbox", "aria-label": `Compare ${row.name}`, change: () => pick(row.id, box.checked) });
  box.checked = picked.has(row.id);
  const why = [];
  if (row.participation) why.push(el("span", { class: "reason warn", text: row.participation }));
  if (row.health_reason && row.health !== "waiting") why.push(el("span", { class: `reason ${row.health === "slow" ? "warn" : ""}`, text: row.health_reason }));
  else if (row.health_reason) why.push(el("span", { class: "sub", text: row.health_reason }));
  if (row.status === "failed" && row.reason) why.push(el("span", { class: "reason", title: row.reason, text: row.reason }));
  const cell = (label, value, kind = "number") => el("td", { "data-label": label, class: kind }, value);
  const left = isActive(row) && row.eta_seconds !== null ? format.seconds(row.eta_seconds) : "–";
  return el("tr", { data: { id: row.id, href: runPage(row.id) }, class: inTrouble(row) ? "trouble" : "" },
    el("td", { class: "pick-cell" }, box),
    el("th", { scope: "row", class: "name-cell wide-cell" }, el("a", { href: runPage(row.id), text: row.name }), el("span", { class: "sub mono", text: row.id }), why),
    cell("State", stateTag(row), ""),
    cell("Strategy", [row.strategy, el("span", { class: "sub", text: `seed ${row.seed}` })], ""),
    cell("Rounds", progress(row), "rounds-cell"),
    cell("Metric", [format.figure(row.metric), el("span", { class: "sub", text: shortMetric(row.metric_name) })]),
    cell("ε spent", row.privacy === "none" ? el("span", { class: "muted", text: "none" }) : [format.epsilon(row), el("span", { class: "sub", text: row.epsilon_total === null ? row.privacy : `of ${format.number(row.epsilon_total)}` })]),
    cell("Sent", format.bytes(sent(row))),
    cell("Last commit", time(format.when(row.last_commit))),
    cell("Time left", left),
    el("td", { class: "number" }, action(row)));
}

function action(row) {
  if (!mayAct()) return null;
  if (["running", "queued"].includes(row.status) && !row.stop_requested) return el("button", { type: "button", class: "plain", text: "Stop", "aria-label": `Stop ${row.name}`, click: () => stop(row) });
  if (["stopped", "failed", "interrupted"].includes(row.status)) return el("button", { type: "button", class: "plain", text: "Resume", "aria-label": `Resume ${row.name}`, click: () => resume(row) });
  return null;
}

async function stop(row) {
  const text = row.status === "queued" ? "It waits for its turn and will not begin." : "It ends after the round that is under way, and can be resumed.";
  await change({ title: `Stop ${row.name}?`, text, action: "Stop", danger: true }, `${runPage(row.id)}/stop`);
}

async function resume(row) {
  const rounds = el("input", { type: "number", name: "rounds", min: Math.max(row.round, 1), value: row.rounds });
  await change({ title: `Resume ${row.name}?`, text: `It goes on after round ${row.round}.`, action: "Resume", fields: [field("Rounds in all", rounds)] }, `${runPage(row.id)}/resume`);
}

async function change(question, address) {
  const fields = await ask(question);
  if (!fields) return;
  try { await act("POST", address, fields); await fetchAll(); } catch (error) { notify("bad", error.message); }
}

function pick(id, on) {
  if (on) picked.add(id); else picked.delete(id);
  for (const old of [...picked]) if (!rows.has(old)) picked.delete(old);
  $("#picked").hidden = picked.size === 0;
  $("#picked-count").textContent = picked.size === 1 ? "1 run selected: pick another" : `${picked.size} runs selected`;
  const go = $("#picked-go");
  go.href = `/compare?${[...picked].map((one) => `run=${encodeURIComponent(one)}`).join("&")}`;
  go.setAttribute("aria-disabled", String(picked.size < 2));
}

/** Puts what is wanted into the table; lines that did not change stay as they are. */
function show() {
  const words = $("#filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (row) => WHICH[which](row) && words.every((word) => [row.name, row.id, row.strategy, state(row), row.sweep ?? ""].some((text) => text.toLowerCase().includes(word)));
  const wanted = order.map((id) => rows.get(id)).filter(fits);
  const visible = wanted.slice(0, shown).map((row) => {
    const text = JSON.stringify(row);
    const known = lines.get(row.id);
    if (known && known.text === text) return known.node;
    const node = line(row);
    lines.set(row.id, { text, node });
    return node;
  });
  const focused = document.activeElement?.closest?.("tr")?.dataset.id;
  if (body.children.length !== visible.length || visible.some((node, place) => body.children[place] !== node)) fill(body, visible);
  if (focused && document.activeElement === document.body) $("a", lines.get(focused)?.node ?? body)?.focus({ preventScroll: true });
  $("#runs").hidden = wanted.length === 0;
  $("#none").hidden = rows.size > 0;
  $("#nothing").hidden = rows.size === 0 || wanted.length > 0;
  summarise();
}

function summarise() {
  const all = [...rows.values()];
  const running = all.filter((row) => ["running", "stopping"].includes(row.status)).length;
  const trouble = all.filter(inTrouble).length;
  fill($("#summary"), format.plural(all.length, "run"), running ? `, ${running} running` : "", trouble ? [", ", el("strong", { text: `${trouble} in trouble` })] : "");
  document.title = trouble ? `(${trouble}) Runs – fedlora` : "Runs – fedlora";
}

function take(found) {
  for (const row of found) rows.set(row.id, row);
  order = [...rows.values()].sort((one, other) => (one.created_at < other.created_at ? 1 : -1)).map((row) => row.id);
}

async function fetchAll() {
  try {
    const found = (await get("/data/runs")).runs;
    rows.clear();
    take(found);
    show();
  } catch (error) {
    if (rows.size === 0) notify("bad", error.message);
  }
}

$("#filter").addEventListener("input", settled(() => { shown = STEP; show(); }, 80));
$("#which").addEventListener("click", (event) => {
  const chosen = event.target.dataset.which;
  if (!chosen) return;
  which = chosen;
  for (const one of $$("#which button")) one.setAttribute("aria-pressed", String(one === event.target));
  show();
});
$("#picked-none").addEventListener("click", () => { for (const id of [...picked]) pick(id, false); for (const box of $$("#runs input")) box.checked = false; });
$("#picked-go").addEventListener("click", (event) => { if (picked.size < 2) event.preventDefault(); });
addEventListener("scroll", settled(() => {
  if (shown < rows.size && innerHeight + scrollY > document.documentElement.scrollHeight - 800) { shown += STEP; show(); }
}, 100), { passive: true });

new Stream("/stream", {
  hello: fetchAll,
  runs: ({ rows: changed, gone }) => {
    for (const row of changed) row.eta_seconds ??= rows.get(row.id)?.round === row.round ? rows.get(row.id).eta_seconds : null;
    take(changed);
    for (const id of gone) rows.delete(id);
    show();
  },
});
