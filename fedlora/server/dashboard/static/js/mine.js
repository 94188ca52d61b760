import { get } from "./api.js";
import { Chart } from "./chart.js";
import { $, el, empty, fill, paced } from "./dom.js";
import * as format from "./format.js";
import { outcomeClass } from "./matrix.js";
import { time, trouble } from "./page.js";
import { shortMetric } from "./rows.js";
import { outcome } from "./run_clients.js";
import { Stream } from "./stream.js";
import { VirtualTable } from "./vtable.js";

const SIGNS = { reported: "r", rejected: "x", declined: "d", failed: "f", lost: "l", late: "t" };
const charts = new Map();
let table = null;

function facts(mine) {
  const fact = (name, value, note = "") => el("div", {}, el("dt", { text: name }), el("dd", {}, value, el("small", {}, note || "\u00a0")));
  const asked = Object.values(mine.counts).reduce((sum, count) => sum + count, 0);
  const values = mine.series.columns[mine.metric_name] ?? [];
  fill($("#facts"),
    fact("Round", [format.number(mine.round), " ", el("span", { class: "of", text: `of ${format.number(mine.rounds)}` })], mine.status),
    fact(format.capital(shortMetric(mine.metric_name)), format.figure([...values].reverse().find((value) => value !== null) ?? null), "of the global model"),
    fact("You took part in", format.plural(mine.counts.reported ?? 0, "round"), `asked in ${asked}`),
    fact("You sent", format.bytes(mine.bytes_up), `and received ${format.bytes(mine.bytes_down)}`),
    fact("Your privacy (ε)", mine.privacy === "none" ? "none" : format.number(mine.epsilon), mine.privacy === "none" ? "no differential privacy" : `at most ${format.number(mine.promised)}`));
  const bar = $("#progress");
  bar.max = Math.max(mine.rounds, 1);
  bar.value = mine.round;
  bar.className = `progress-line ${mine.status}`;
}

function curves(mine) {
  const { columns, labels } = mine.series;
  const names = Object.keys(columns).filter((name) => name !== "round" && !name.endsWith("_estimated") && name !== "clients_units");
  if (!charts.size) fill($("#charts"));
  if (!columns.round?.length || !names.length) return void (charts.size || fill($("#charts"), el("div", { class: "card" }, empty("No round is committed yet"))));
  for (const name of [mine.metric_name, ...names.filter((one) => one !== mine.metric_name)].filter((one) => columns[one]).slice(0, 6)) {
    if (!charts.has(name)) {
      const host = el("figure");
      $("#charts").append(host);
      charts.set(name, new Chart(host, { title: format.capital(format.spoken(name)), note: labels[name] === format.spoken(name) ? "" : labels[name], log: /loss|error/.test(name), sync: "mine", file: mine.run }));
    }
    charts.get(name).set({ x: { values: columns.round, label: "Round", unit: "" }, lines: [{ label: "global model", values: columns[name], place: 0 }] });
  }
}

function own(mine) {
  fill($("#legend"), Object.entries(mine.counts).filter(([, count]) => count).map(([word, count]) => el("li", {}, outcome(word), el("b", { text: format.number(count) }))));
  fill($("#strip"), mine.own.slice(-400).map((one) => el("span", { class: outcomeClass(SIGNS[one.outcome]), title: `round ${one.round}: ${one.outcome}` })));
  if (!mine.own.length) return void fill($("#own-table"), empty("You were not asked yet"));
  table ??= new VirtualTable($("#own-table"), { caption: "Your rounds, newest first", columns: [
    { head: "Round", cell: (one) => String(one.round) },
    { head: "Outcome", cell: (one) => outcome(one.outcome) },
    { head: "Why", why: true, cell: (one) => one.reason || "–" },
    { head: "Samples", number: true, cell: (one) => format.number(one.samples) },
    { head: "Up", number: true, cell: (one) => format.bytes(one.bytes_up) },
    { head: "Down", number: true, cell: (one) => format.bytes(one.bytes_down) },
    { head: "Took", number: true, cell: (one) => format.seconds(one.seconds) },
  ] });
  table.update([...mine.own].reverse());
}

async function refresh() {
  try {
    const mine = await get("/mine/data");
    $("#title").textContent = mine.run_name;
    fill($("#summary"), "Last commit ", time(format.when(mine.last_commit)));
    facts(mine);
    curves(mine);
    own(mine);
    fill($("#privacy"), el("p", { text: mine.statement || "There is no differential privacy in this run: what a client sends can reveal its rows." }), mine.notes.map((note) => el("p", { class: "small soft", text: note })));
  } catch (error) {
    if (!charts.size) trouble($("#charts"), error, refresh);
  }
}

const soon = paced(refresh, 150);
new Stream("/mine/stream", { hello: refresh, mine: soon, line: soon });
