import { get, mayAct, runData, runPage } from "./api.js";
import { $, el, fill, paced } from "./dom.js";
import * as format from "./format.js";
import { carryOut, field, notify, reveal, time, trouble } from "./page.js";
import { act } from "./api.js";
import { Curves } from "./run_charts.js";
import { Clients } from "./run_clients.js";
import { Checkpoints, Configuration, RoundTable } from "./run_tables.js";
import { isActive, shortMetric, state, warnings } from "./rows.js";
import { Stream } from "./stream.js";

const page = $("#run");
const id = page.dataset.id;
const sees = page.dataset.sees === "1";
let row = null;
let under = null; // the round that is under way: {round, asked, answered}

const clients = sees ? new Clients(id) : null;
const curves = new Curves(id);
const rounds = new RoundTable(id, (round) => clients?.open(round));
const checkpoints = new Checkpoints(id);
const configuration = new Configuration(id);

function facts() {
  const fact = (name, value, note = "") => el("div", {}, el("dt", { text: name }), el("dd", { class: value instanceof Node ? "words" : "" }, value, el("small", {}, note || "\u00a0")));
  const part = row.rounds ? Math.round((100 * row.round) / row.rounds) : 0;
  const now = under && under.round > row.round && isActive(row) ? `round ${under.round}: ${under.answered} of ${under.asked} answered` : `${part} %`;
  const found = [
    fact("Round", [format.number(row.round), " ", el("span", { class: "of", text: `of ${format.number(row.rounds)}` })], now),
    fact(format.capital(shortMetric(row.metric_name)), format.figure(row.metric), row.test_metric === null ? "validation" : `test ${format.figure(row.test_metric)}`),
    fact("Privacy spent (ε)", row.privacy === "none" ? "none" : format.epsilon(row), row.privacy === "none" ? "no differential privacy" : `${row.epsilon_total === null ? "" : `of ${format.number(row.epsilon_total)}, `}${row.privacy}${row.delta ? `, δ = ${format.number(row.delta)}` : ""}`),
  ];
  if (row.bytes_up !== null) {
    found.push(fact("Sent up", format.bytes(row.bytes_up), "from the clients"),
      fact("Sent down", format.bytes(row.bytes_down), row.bytes_once ? `and ${format.bytes(row.bytes_once)} once` : "to the clients"));
  }
  found.push(fact("Last commit", time(format.when(row.last_commit)), row.expected_seconds && isActive(row) ? `one every ${format.seconds(row.expected_seconds)} or so` : ""));
  if (isActive(row)) found.push(fact("Time left", row.eta_seconds === null ? "–" : format.seconds(row.eta_seconds), row.stop_requested ? "will stop after this round" : ""));
  else found.push(fact("Ended", time(format.when(row.finished_at), "moment"), `${row.strategy}, seed ${row.seed}`));
  fill($("#facts"), found);
  const bar = $("#progress");
  bar.max = Math.max(row.rounds, 1);
  bar.value = row.round;
  bar.className = `progress-line ${state(row)}`;
}

function head() {
  const word = state(row);
  const shown = $("#state");
  shown.textContent = word;
  shown.className = `tag ${word}`;
  const key = JSON.stringify([row.participation, row.health, row.health_reason, row.status, row.reason]);
  if (head.key !== key) fill($("#warnings"), warnings(row));
  head.key = key;
  document.title = `${row.round}/${row.rounds} ${row.name} – fedlora`;
}

function actions() {
  const key = [row.status, row.stop_requested].join();
  if (!mayAct() || actions.key === key) return;
  actions.key = key;
  $("#act")?.remove();
  const make = (words, kind, click) => $("#actions").append(el("button", { type: "button", id: "act", class: kind, text: words, click }));
  if (["running", "queued"].includes(row.status)) {
    if (row.stop_requested) return;
    make("Stop", "danger", () => change({ title: "Stop this run?", text: "It ends after the round that is under way, and can be resumed.", action: "Stop", danger: true }, "stop"));
  } else if (["stopped", "failed", "interrupted", "finished"].includes(row.status)) {
    const more = row.status === "finished";
    const input = el("input", { type: "number", name: "rounds", min: Math.max(row.round + (more ? 1 : 0), 1), value: more ? row.rounds + 10 : row.rounds });
    make(more ? "More rounds" : "Resume", more ? "" : "primary", () => change({ title: more ? "Train for more rounds?" : "Resume this run?", text: `It goes on after round ${row.round}.`, action: "Resume", fields: [field("Rounds in all", input)] }, "resume"));
  }
}

async function change(question, what) {
  if (await carryOut(question, "POST", `${runPage(id)}/${what}`)) refresh();
}

function show(found) {
  row = found;
  head();
  facts();
  actions();
}

/** After the first time, all parts of the page come in one answer. */
function more() {
  const asked = new URLSearchParams({ ...(sees && { matrix: 1 }), ...(curves.metric && { spread: curves.metric }) });
  return asked.size ? `?${asked}` : "";
}

async function refresh() {
  try {
    const found = await get(`${runData(id)}${refresh.done ? more() : ""}`);
    show(found.row);
    curves.set(found);
    rounds.set(found.series, found.row);
    checkpoints.set(found.checkpoints, found.row);
    clients?.refresh(found.row, found.matrix);
    if (!refresh.done) configuration.load();
    refresh.done = true;
  } catch (error) {
    if (!refresh.done) trouble($("#charts"), error, refresh);
  }
}

const soon = paced(refresh, 120);

/** A line of the log, as soon as it is written. */
function told(event) {
  clients?.told(event);
  if (event.event === "round_started") under = { round: event.round, asked: event.cohort?.length ?? 0, answered: 0 };
  else if (under && event.row && event.round === under.round) under.answered += 1;
  else if (event.event === "run_started" || event.event === "run_resumed") under = null;
  if (["round_committed", "run_finished", "run_stopped", "run_failed", "run_resumed"].includes(event.event)) soon();
  else if (row) facts();
}

$("#new-link")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { csrf: _, ...fields } = Object.fromEntries(new FormData(event.target));
  try {
    const made = await act("POST", `${runPage(id)}/links`, fields);
    await reveal({ title: `The link for ${made.site}`, text: `${made.note} It is shown this once.`, secret: made.secret });
  } catch (error) {
    notify("bad", error.message);
  }
});

new Stream(`/stream?run=${encodeURIComponent(id)}`, {
  hello: refresh,
  runs: ({ rows }) => {
    const mine = rows.find((one) => one.id === id);
    if (!mine || !row) return;
    if (mine.round !== row.round || mine.status !== row.status) soon();
    mine.eta_seconds ??= row.eta_seconds;
    show(mine);
  },
  line: told,
});
