// Who took part in a run: the matrix, single rounds, and the server's notes about clients.

import { get, runData } from "./api.js";
import { $, el, empty, fill, settled } from "./dom.js";
import * as format from "./format.js";
import { MatrixView, outcomeClass } from "./matrix.js";
import { trouble } from "./page.js";
import { VirtualTable } from "./vtable.js";

const KEPT = 60; // rosters that are kept
const MOST = 1000; // notes in the list, beyond which it begins anew
const SIGNS = { reported: "r", rejected: "x", declined: "d", failed: "f", lost: "l", late: "t" };

export const outcome = (word) => el("span", { class: "outcome" }, el("span", { class: `swatch ${outcomeClass(SIGNS[word])}`, "aria-hidden": "true" }), word);

export class Clients {
  constructor(id) {
    this.id = id;
    this.rosters = new Map();
    this.events = [];
    this.ask = settled((...given) => this.explain(...given), 90);
    $("#event-client").addEventListener("change", () => this.load());
    $("#older").addEventListener("click", () => this.load(this.before));
    $("#matrix-table").addEventListener("toggle", () => this.table());
  }

  /** matrix: where it is known; else it is asked for. */
  async refresh(row, matrix) {
    try {
      const found = matrix ?? await get(`${runData(this.id)}/matrix`);
      this.matrix = found;
      this.draw(found);
      if (row.status !== this.status || !this.loaded) this.load();
      this.status = row.status;
    } catch (error) {
      if (!this.view) trouble($("#matrix"), error, () => this.refresh(row));
    }
  }

  draw(found) {
    if (!found.clients.length || !found.rounds.length) return void fill($("#matrix"), empty("Nobody was asked yet", "The first round fills the first column."));
    const used = new Set(found.counts.flatMap((counts) => Object.keys(counts).filter((letter) => counts[letter])));
    fill($("#legend"), Object.entries(found.legend).filter(([letter]) => used.has(letter)).map(([letter, word]) => el("li", {}, el("span", { class: `swatch ${outcomeClass(letter)}`, "aria-hidden": "true" }), word, el("b", { text: format.number(found.counts.reduce((sum, counts) => sum + (counts[letter] ?? 0), 0)) }))));
    if (!this.view) this.view = new MatrixView($("#matrix"), (client, round, opened, letter) => this.pointed(client, round, opened, letter));
    this.view.set(found);
    this.table();
    this.choices(found.clients);
  }

  choices(names) {
    if (this.named === names.length) return;
    this.named = names.length;
    const select = $("#event-client");
    const chosen = select.value;
    fill(select, el("option", { value: "", text: "all clients" }), names.map((name) => el("option", { value: name, text: name })));
    select.value = chosen;
  }

  pointed(client, round, opened, letter) {
    const name = this.matrix.clients[client];
    const word = this.matrix.legend[letter] ?? "not asked";
    this.wanted = `${name}\n${round}`;
    this.say(name, round, word, letter, null);
    if (letter !== "." && letter !== "r") this.ask(name, round, word, letter);
    if (opened) this.open(round, name);
  }

  say(name, round, word, letter, reason) {
    fill($("#matrix-said"), el("span", { class: `swatch ${outcomeClass(letter)}`, "aria-hidden": "true" }), el("span", {}, el("b", { text: name }), ` in round ${round}: ${word}`, reason ? `: ${reason}` : ""),
      letter === "." ? null : el("button", { type: "button", class: "plain", text: "Open the round", click: () => this.open(round, name) }));
  }

  async explain(name, round, word, letter) {
    const found = await this.roster(round).catch(() => null);
    const line = found?.find((one) => one.client === name);
    if (line && this.wanted === `${name}\n${round}`) this.say(name, round, word, letter, line.reason);
  }

  async roster(round) {
    if (!this.rosters.has(round)) {
      const found = (await get(`${runData(this.id)}/rounds/${round}`)).roster;
      this.rosters.set(round, found);
      if (this.rosters.size > KEPT) this.rosters.delete(this.rosters.keys().next().value);
    }
    return this.rosters.get(round);
  }

  /** The roster of a round, below the matrix. */
  async open(round, name = null) {
    const panel = $("#round-panel");
    panel.hidden = false;
    try {
      const found = await this.roster(round);
      this.panel(panel, round, found, name);
    } catch (error) {
      trouble(panel, error, () => this.open(round, name));
    }
    panel.focus({ preventScroll: true });
    panel.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }

  panel(panel, round, found, name) {
    const rounds = this.matrix?.rounds ?? [];
    const step = (by) => el("button", { type: "button", text: by < 0 ? "← Earlier" : "Later →", disabled: !rounds.includes(round + by), click: () => this.open(round + by) });
    const metrics = [...new Set(found.flatMap((line) => Object.keys(line.metrics)))].slice(0, 6);
    const counted = found.filter((line) => line.outcome === "reported").length;
    const box = el("div");
    fill(panel, el("div", { class: "section-head pad panel-head" }, el("h2", { text: `Round ${round}: ${counted} of ${found.length} counted` }), step(-1), step(1),
      el("button", { type: "button", class: "plain", text: "Close", click: () => { panel.hidden = true; this.view?.box.focus({ preventScroll: true }); } })), box);
    if (!found.length) return void fill(box, empty("Nobody was asked in this round"));
    const table = new VirtualTable(box, { caption: `Roster of round ${round}`, rowProps: (line) => ({ class: line.client === name ? "changed" : "" }), columns: [
      { head: "Client", cell: (line) => line.client },
      { head: "Outcome", cell: (line) => outcome(line.outcome) },
      { head: "Why", why: true, cell: (line) => line.reason || "–" },
      { head: "Samples", number: true, cell: (line) => format.number(line.samples) },
      { head: "Up", number: true, cell: (line) => format.bytes(line.bytes_up) },
      { head: "Down", number: true, cell: (line) => format.bytes(line.bytes_down) },
      { head: "Took", number: true, cell: (line) => format.seconds(line.seconds) },
      ...metrics.map((metric) => ({ head: format.capital(format.spoken(metric)), number: true, cell: (line) => format.figure(line.metrics[metric] ?? null) })),
    ] });
    const trouble = (line) => (line.outcome === "reported" ? 1 : 0);
    table.update([...found].sort((one, other) => trouble(one) - trouble(other)));
  }

  /** What the canvas shows, for whoever cannot see it. */
  table() {
    const details = $("#matrix-table");
    if (!details.open || !this.matrix) return;
    const { legend, clients, cells, counts, rounds } = this.matrix;
    const letters = Object.keys(legend).filter((letter) => letter !== ".");
    const missed = (row) => letters.filter((letter) => letter !== "r").map((letter) => {
      const found = rounds.filter((_, column) => cells[row][column] === letter);
      return found.length ? `${legend[letter]} in ${format.ranges(found)}` : "";
    }).filter(Boolean).join("; ") || "–";
    this.rows ??= new VirtualTable($("div", details), { caption: "Outcomes of each client", columns: [
      { head: "Client", cell: (row) => this.matrix.clients[row] },
      { head: "Asked", number: true, cell: (row) => format.number(letters.reduce((sum, letter) => sum + (this.matrix.counts[row][letter] ?? 0), 0)) },
      ...letters.map((letter) => ({ head: format.capital(legend[letter]), number: true, cell: (row) => format.number(this.matrix.counts[row][letter] ?? 0) })),
      { head: "Rounds without its update", why: true, cell: missed },
    ] });
    this.rows.update(clients.map((_, row) => row));
    void counts;
  }

  async load(before = null) {
    const client = $("#event-client").value;
    const asked = `${runData(this.id)}/events?limit=100${client ? `&client=${encodeURIComponent(client)}` : ""}${before === null ? "" : `&before=${before}`}`;
    const late = before === null ? (this.late = []) : this.late; // what is told until the answer is there
    try {
      const found = await get(asked);
      if (late !== this.late) return; // another question was asked meanwhile
      const known = new Set(found.events.map(mark));
      this.events = before === null ? [...late.filter((one) => !known.has(mark(one))).reverse(), ...found.events] : [...this.events, ...found.events];
      this.marks = new Set(this.events.map(mark));
      this.loaded = true;
      this.before = found.before;
      this.list();
    } catch (error) {
      const host = el("li", { class: "whole" });
      fill($("#event-list"), host);
      trouble(host, error, () => this.load(before));
    }
  }

  list() {
    const line = (one) => el("li", {}, el("time", { class: "muted", datetime: one.time, title: format.exact(format.when(one.time)), data: { how: "clock" }, text: format.clock(format.when(one.time)) }), el("span", { class: "muted", text: `round ${one.round}` }),
      el("span", { class: "who-cell", text: one.client }), outcome(one.outcome || one.event), el("span", { class: "why", text: one.reason }));
    fill($("#event-list"), this.events.length ? this.events.map(line) : el("li", { class: "whole" }, empty("Nothing was noted yet", "Each answer, refusal and absence of a client is noted here.")));
    $("#older").hidden = this.before === null;
  }

  /** A line of the log that was just written. It may be one that was fetched already. */
  told(event) {
    if (!event.row) return;
    this.rosters.delete(event.round);
    const number = event.row.client;
    const name = this.matrix?.clients[this.matrix.numbers.indexOf(number)];
    if (name === undefined) { // in its first round: the server knows what it is called
      this.anew ??= setTimeout(() => { this.anew = null; this.load(); }, 200);
      return;
    }
    const chosen = $("#event-client").value;
    if (chosen && chosen !== name) return;
    const one = { time: event.time, round: event.round, client: name, number, event: event.event, outcome: event.row.outcome, reason: event.row.reason };
    this.late?.push(one);
    if (!this.loaded || this.marks.has(mark(one))) return;
    this.marks.add(mark(one));
    this.events.unshift(one);
    this.frame ??= setTimeout(() => { this.frame = null; if (this.events.length > MOST) this.load(); else this.list(); }, 100);
  }
}

/** The same for a line that was fetched and one that was told. */
const mark = (one) => `${Date.parse(one.time)} ${one.round} ${one.number} ${one.outcome}`;
