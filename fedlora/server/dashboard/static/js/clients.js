import { act, get, mayAct, runPage } from "./api.js";
import { $, el, empty, fill, paced, settled, tag } from "./dom.js";
import * as format from "./format.js";
import { ask, carryOut, field, notify, reveal, time, trouble } from "./page.js";
import { outcome } from "./run_clients.js";
import { Stream } from "./stream.js";

const OUTCOMES = [["reported", "r"], ["rejected", "x"], ["declined", "d"], ["failed", "f"], ["lost", "l"], ["late", "t"]];
const SOON = 14 * 86400000; // ms before a certificate's end from which on it is a warning
const clients = new Map();
let opened = null;

function presence(one) {
  if (one.status !== "active") return [tag(one.status), one.reason ? el("span", { class: "sub", text: one.reason }) : null];
  if (!one.connected) return [tag("away", "stopped"), el("span", { class: "sub" }, one.last_seen ? ["seen ", time(format.when(one.last_seen))] : "never seen")];
  if (one.paused !== null) return [tag("paused"), el("span", { class: "sub", text: one.paused || "by its owner" })];
  return [tag("connected"), el("span", { class: "sub", text: one.work ? "training" : "idle" })];
}

/** Shares of a whole as a bar; each part is named beside it. */
function mini(one) {
  const NS = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(NS, "svg");
  picture.setAttribute("viewBox", "0 0 100 8");
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("aria-hidden", "true");
  let at = 0;
  for (const [name, letter] of OUTCOMES) {
    const wide = (100 * one[name]) / one.asked;
    if (!wide) continue;
    const part = document.createElementNS(NS, "rect");
    for (const [key, value] of Object.entries({ x: at, y: 0, width: wide, height: 8, class: `fill-${letter}` })) part.setAttribute(key, value);
    picture.append(part);
    at += wide;
  }
  return el("div", { class: "mini" }, picture);
}

function participation(one) {
  if (!one.asked) return el("span", { class: "muted", text: "not asked yet" });
  const missed = OUTCOMES.slice(1).filter(([name]) => one[name]).map(([name]) => `${one[name]} ${name}`).join(", ");
  return [mini(one), el("span", { class: "sub", text: `${one.reported} of ${one.asked} counted${missed ? `; ${missed}` : ""}` })];
}

function certificate(one) {
  const until = format.when(one.certificate_expires ?? one.invitation_expires);
  if (!until) return "–";
  const late = until.getTime() - Date.now() < SOON;
  const kind = until < new Date() ? "expired" : late ? "slow" : "";
  const words = time(until, "ahead");
  const what = one.certificate_expires ? "" : el("span", { class: "sub", text: "invitation" });
  return kind ? [el("span", { class: `tag ${kind}` }, kind === "expired" ? "expired " : "", words), what] : [words, what];
}

function line(one) {
  const cell = (label, value, kind = "") => el("td", { "data-label": label, class: kind }, value);
  const open = el("button", { type: "button", class: "link-button", text: one.name, "aria-expanded": String(opened === one.name), click: () => details(one.name) });
  return el("tr", { class: "pick", data: { name: one.name } },
    el("th", { scope: "row", class: "name-cell wide-cell" }, open),
    cell("Presence", presence(one)),
    cell("Version", one.version || "–"),
    cell("Data it offers", one.data.length ? one.data.join(", ") : "–"),
    cell("Participation", participation(one)),
    cell("Up", format.bytes(one.bytes_up), "number"),
    cell("Down", format.bytes(one.bytes_down), "number"),
    cell("Certificate", certificate(one), "number"),
    el("td", { class: "number" }, mayAct() && one.status !== "revoked" ? el("button", { type: "button", class: "plain danger", text: "Revoke", "aria-label": `Revoke ${one.name}`, click: () => revoke(one) }) : null));
}

function show() {
  const words = $("#filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const all = [...clients.values()];
  const wanted = all.filter((one) => words.every((word) => [one.name, one.status, one.connected ? "connected" : "away", one.device ?? "", ...one.data].some((text) => text.toLowerCase().includes(word))));
  const focused = document.activeElement?.closest?.("tr")?.dataset.name;
  fill($("#clients tbody"), wanted.map(line));
  if (focused) $(`tr[data-name="${CSS.escape(focused)}"] button`)?.focus({ preventScroll: true });
  $("#clients").hidden = wanted.length === 0;
  $("#none").hidden = all.length > 0;
  $("#nothing").hidden = all.length === 0 || wanted.length > 0;
  const connected = all.filter((one) => one.connected).length;
  fill($("#summary"), `${connected} of ${format.plural(all.length, "client")} connected`);
  if (opened) details(opened, false);
}

/** Instead of what a client has not said; what its owner lets it say it says when it connects. */
function untold(one) {
  return one.connected ? "not told: its owner does not let it tell" : "told only while it is connected";
}

function details(name, move = true) {
  const one = clients.get(name);
  const host = $("#details");
  if (!one || (move && opened === name && !host.hidden)) {
    opened = null;
    host.hidden = true;
    return void show();
  }
  const again = opened !== name;
  opened = name;
  host.hidden = false;
  const rows = [
    ["Enrolled", time(format.when(one.enrolled_at), "moment")], ["Certificate ends", time(format.when(one.certificate_expires), "ahead")],
    ["Last seen", time(format.when(one.last_seen))], ["Version", one.version || "–"],
    ["Device", one.device ?? untold(one)], ["Site policy", one.policy.length ? el("ul", { class: "reasons" }, one.policy.map((text) => el("li", { text }))) : untold(one)],
  ];
  fill(host, el("div", { class: "section-head" }, el("h2", { text: one.name }), el("button", { type: "button", class: "plain", text: "Close", click: () => details(name) })),
    el("div", { class: "columns" },
      el("div", { class: "card pad stack" }, el("dl", { class: "key-list" }, rows.flatMap(([head, value]) => [el("dt", { class: "muted", text: head }), el("dd", {}, value)])), el("p", { class: "small muted", text: "Version, data, device and site policy are what the client said of itself when it connected, as far as its owner lets it. Nobody has checked them." })),
      el("div", { class: "card pad stack" }, el("h3", { text: "Its last refusals" }), one.last_reasons.length ? el("ul", { class: "reasons" }, one.last_reasons.map((refusal) => el("li", {}, outcome(refusal.outcome), " ", el("a", { href: runPage(refusal.run), text: refusal.run_name }), `, round ${refusal.round}: `, el("span", { class: "soft", text: refusal.reason })))) : el("p", { class: "muted", text: "None." })),
      el("div", { class: "card" }, el("div", { class: "pad" }, el("h3", { text: "Privacy that runs promised it" }), el("p", { class: "small muted", text: "As the server counts it by its rosters. What the site has really spent is in its owner's ledger, which never travels." })), privacy(one))));
  if (move && again) host.focus({ preventScroll: true });
  if (move && again) host.scrollIntoView({ block: "nearest" });
  if (again && move) show();
}

function privacy(one) {
  if (!one.privacy.length) return empty("No run with differential privacy");
  return el("div", { class: "scroll" }, el("table", { class: "tight" }, el("thead", {}, el("tr", {}, ["Run", "Rounds", "ε so far", "ε at most"].map((head, place) => el("th", { scope: "col", class: place ? "number" : "", text: head })))),
    el("tbody", {}, one.privacy.map((run) => el("tr", {}, el("td", {}, el("a", { href: runPage(run.run), text: run.run_name }), run.central ? el("span", { class: "sub", text: "central" }) : null), el("td", { class: "number", text: format.number(run.rounds) }), el("td", { class: "number", text: format.number(run.epsilon) }), el("td", { class: "number", text: format.number(run.promised) }))))));
}

async function revoke(one) {
  const reason = field("Why (the client's owner is told)", el("input", { name: "reason", maxlength: 300 }));
  if (await carryOut({ title: `Revoke ${one.name}?`, text: "Its certificates and tokens end, and its connection closes within seconds. It can be enrolled again.", action: "Revoke", danger: true, fields: [reason] }, "POST", `/clients/${encodeURIComponent(one.name)}/revoke`, `${one.name} is revoked.`)) fetchAll();
}

async function enroll() {
  const fields = [
    field("Name", el("input", { name: "name", required: true, maxlength: 63, autocomplete: "off", placeholder: "e.g. hospital-north" })),
    field("Hours that the token is good for", el("input", { name: "hours", type: "number", min: 1, max: 8784, value: 72, required: true })),
  ];
  const given = await ask({ title: "Enroll a client", text: "You get a token for one use. Give it to the client's owner in private.", action: "Make a token", fields });
  if (!given) return;
  try {
    const made = await act("POST", "/clients", given);
    await reveal({ title: `The token for ${made.name}`, text: made.note, secret: made.secret, after: made.command ? [el("pre", { class: "command", text: made.command })] : [] });
    fetchAll();
  } catch (error) {
    notify("bad", error.message);
  }
}

async function fetchAll() {
  try {
    const found = (await get("/data/clients")).clients;
    clients.clear();
    for (const one of found) clients.set(one.name, one);
    show();
  } catch (error) {
    if (!clients.size) trouble($("#details"), error, fetchAll), ($("#details").hidden = false);
  }
}

$("#enroll")?.addEventListener("click", enroll);
$("#filter").addEventListener("input", settled(show, 80));
const soon = paced(fetchAll, 300);
const rounds = new Map();
new Stream("/stream", {
  hello: fetchAll,
  clients: (changed) => {
    for (const one of changed) {
      const known = clients.get(one.name);
      if (!known || (one.connected && !(known.connected && known.status === "active"))) return void soon(); // new here, joined or come back: with what it says of itself
      if (known.connected && !one.connected) one.last_seen = new Date().toISOString();
      Object.assign(known, one);
    }
    show();
  },
  runs: ({ rows }) => {
    const committed = rows.some((row) => rounds.get(row.id) !== row.round);
    for (const row of rows) rounds.set(row.id, row.round);
    if (committed) soon();
  },
});
