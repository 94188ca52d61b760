import { get, runPage } from "./api.js";
import { Chart } from "./chart.js";
import { $, $$, el, fill, paced, settled } from "./dom.js";
import * as format from "./format.js";
import { notify, trouble } from "./page.js";
import { sent, stateTag } from "./rows.js";
import { Stream } from "./stream.js";

const MOST = Number($("#compare").dataset.most);
const AGAINST = { round: ["Round", ""], bytes_total: ["Bytes sent so far", "bytes"], seconds: ["Training time so far", "s"], virtual_seconds: ["Virtual time so far", "s"], epsilon: ["Privacy spent (ε)", ""] };
const chosen = new Set(new URLSearchParams(location.search).getAll("run").slice(0, MOST));
let runs = [];
let found = null;
let metric = null;
let against = "round";
let chart = null;

function picker() {
  const words = $("#filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (row) => words.every((word) => [row.name, row.id, row.strategy].some((text) => text.toLowerCase().includes(word)));
  const wanted = runs.filter((row) => chosen.has(row.id) || fits(row)).sort((one, other) => chosen.has(other.id) - chosen.has(one.id)).slice(0, 100);
  if (!runs.length) return void fill($("#picker"), el("div", { class: "empty" }, el("h2", { text: "No runs to compare yet" })));
  fill($("#picker"), el("table", { class: "tight cards" }, el("caption", { class: "hidden", text: "Runs to compare" }), el("tbody", {}, wanted.map((row) => {
    const box = el("input", { type: "checkbox", id: `pick-${row.id}`, change: () => pick(row, box) });
    box.checked = chosen.has(row.id);
    return el("tr", {}, el("td", { class: "pick-cell" }, box), el("th", { scope: "row", class: "wide-cell" }, el("label", { for: `pick-${row.id}`, text: row.name }), el("span", { class: "sub mono", text: row.id })),
      el("td", { "data-label": "State" }, stateTag(row)), el("td", { "data-label": "Strategy", text: `${row.strategy}, seed ${row.seed}` }), el("td", { "data-label": "Rounds", class: "number", text: `${row.round} of ${row.rounds}` }), el("td", { "data-label": "Metric", class: "number", text: format.figure(row.metric) }));
  }))));
}

function pick(row, box) {
  if (box.checked && chosen.size >= MOST) {
    box.checked = false;
    return void notify("warn", `A comparison has at most ${MOST} runs.`);
  }
  if (box.checked) chosen.add(row.id); else chosen.delete(row.id);
  history.replaceState(null, "", chosen.size ? `/compare?${query()}` : "/compare");
  soon();
}

const query = () => [...chosen].map((id) => `run=${encodeURIComponent(id)}`).join("&");

function show(there) {
  for (const part of ["#overlay", "#groups", "#single"]) $(part).hidden = !there;
  $("#out").dataset.there = String(there); // it keeps its room: on a narrow page all else stands below it
}

async function compare() {
  $("#summary").textContent = chosen.size ? `${format.plural(chosen.size, "run")}` : "Choose runs below: any strategies, seeds and sweeps.";
  if (!chosen.size) return void show(false);
  $("#as-csv").href = `/data/compare.csv?${query()}`;
  $("#as-json").href = `/data/compare?${query()}`;
  try {
    found = await get(`/data/compare?${query()}`);
    show(true); // not before, or what is drawn later would move what is there
    choices();
    draw();
    groups();
    single();
  } catch (error) {
    show(true);
    trouble($("#group-table"), error, compare);
  }
}

function names() {
  const skip = new Set(["round", "committed_at", ...Object.keys(AGAINST), "bytes_up", "bytes_down", "bytes_once", "reported", "asked"]);
  return [...new Set(Object.values(found.series).flatMap((series) => Object.keys(series.columns)))].filter((name) => !skip.has(name));
}

function choices() {
  const all = names();
  if (!all.includes(metric)) metric = all.includes(found.metric) ? found.metric : all[0];
  const select = $("#metric");
  fill(select, all.map((name) => el("option", { value: name, text: format.capital(format.spoken(name)), selected: name === metric })));
  const there = (name) => Object.values(found.series).some((series) => series.columns[name]?.some((value) => value !== null));
  const words = { round: "Rounds", bytes_total: "Bytes", seconds: "Time", virtual_seconds: "Virtual time", epsilon: "ε" };
  if (!there(against)) against = "round";
  fill($("#against"), Object.keys(AGAINST).filter(there).map((name) => el("button", { type: "button", text: words[name], "aria-pressed": String(name === against), data: { name } })));
}

/** Runs have their own places on the axis: joined, with gaps that lines go across. */
function draw() {
  const [label, unit] = AGAINST[against];
  const curves = found.rows.filter((row) => found.series[row.id]?.columns[metric] && found.series[row.id].columns[against]).map((row, place) => ({ row, place, ...found.series[row.id] }));
  const values = [...new Set(curves.flatMap((curve) => curve.columns[against].filter((value) => value !== null)))].sort((one, other) => one - other);
  const places = new Map(values.map((value, place) => [value, place]));
  const lines = curves.map((curve) => {
    const line = new Array(values.length).fill(null);
    curve.columns[against].forEach((value, at) => { if (value !== null) line[places.get(value)] = curve.columns[metric][at]; });
    return { label: title(curve.row), values: line, place: curve.place };
  });
  chart ??= new Chart($("#main-chart"), { title: "", log: true, file: "fedlora-comparison", height: 340 });
  chart.set({ x: { values, label, unit }, lines }, { title: format.capital(found.labels[metric] ?? format.spoken(metric)), unit: found.units[metric] === "bytes" || found.units[metric] === "s" ? found.units[metric] : "", note: `against ${label.toLowerCase()}` });
}

function title(row) {
  const twice = found.rows.filter((other) => other.name === row.name).length > 1;
  return twice ? `${row.name}, seed ${row.seed}` : row.name;
}

const writes = (name) => (/^bytes/.test(name) ? format.bytes : /seconds/.test(name) ? format.seconds : format.figure);

function groups() {
  const cell = (figure, name) => {
    if (!figure) return "–";
    const write = writes(name);
    return figure.sd === null ? write(figure.mean) : `${write(figure.mean)} ± ${write(figure.sd)}`;
  };
  fill($("#group-table"), el("table", { class: "tight" }, el("caption", { class: "hidden", text: "Mean ± standard deviation over seeds" }),
    el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Configuration" }), el("th", { scope: "col", class: "number", text: "n" }), found.figures.map((name) => el("th", { scope: "col", class: "number", text: format.capital(format.spoken(name)) })))),
    el("tbody", {}, found.groups.map((group) => el("tr", {}, el("th", { scope: "row", class: "label-cell", title: group.label }, el("span", { class: "clamp", text: called(group) }), el("span", { class: "sub clamp", text: group.label }), el("span", { class: "sub", text: `seed${group.seeds.length === 1 ? "" : "s"} ${group.seeds.join(", ")}` })), el("td", { class: "number", text: String(group.runs.length) }), found.figures.map((name) => el("td", { class: "number", text: cell(group.figures[name], name) })))))));
}

/** What its runs are called; what sets a configuration apart stands below. */
function called(group) {
  return [...new Set(found.rows.filter((row) => group.runs.includes(row.id)).map((row) => row.name))].join(", ");
}

function single() {
  const colour = (row) => { const place = found.rows.filter((one) => found.series[one.id]?.columns[metric]).indexOf(row); return place < 0 ? "" : `swatch s${place % 8}`; };
  fill($("#run-table"), el("table", { class: "tight" }, el("caption", { class: "hidden", text: "Run by run" }),
    el("thead", {}, el("tr", {}, ["Run", "State", "Strategy", "Seed", "Round", "Metric", "Test", "ε", "Sent"].map((head, place) => el("th", { scope: "col", class: place > 2 ? "number" : "", text: head })))),
    el("tbody", {}, found.rows.map((row) => el("tr", {}, el("th", { scope: "row" }, el("span", { class: colour(row), "aria-hidden": "true" }), " ", el("a", { href: runPage(row.id), text: row.name }), row.participation ? el("span", { class: "reason warn", text: row.participation }) : null), el("td", {}, stateTag(row)), el("td", { text: row.strategy }),
      [String(row.seed), `${row.round} of ${row.rounds}`, format.figure(row.metric), format.figure(row.test_metric), row.privacy === "none" ? "none" : format.epsilon(row), format.bytes(sent(row))].map((text) => el("td", { class: "number", text })))))));
}

async function start() {
  try {
    runs = (await get("/data/runs")).runs;
    const known = new Set(runs.map((row) => row.id));
    for (const id of [...chosen]) if (!known.has(id)) chosen.delete(id);
    picker();
    await compare();
  } catch (error) {
    trouble($("#picker"), error, start);
  }
}

const soon = paced(compare, 150);
$("#filter").addEventListener("input", settled(picker, 80));
$("#metric").addEventListener("change", (event) => { metric = event.target.value; draw(); single(); });
$("#against").addEventListener("click", (event) => {
  if (!event.target.dataset.name) return;
  against = event.target.dataset.name;
  for (const one of $$("#against button")) one.setAttribute("aria-pressed", String(one === event.target));
  draw();
});

new Stream("/stream", {
  hello: start,
  runs: ({ rows }) => {
    if (rows.some((row) => chosen.has(row.id) && row.round !== found?.rows.find((one) => one.id === row.id)?.round)) soon();
  },
});
