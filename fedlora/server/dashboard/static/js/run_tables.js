// The rounds, the configuration and the checkpoints of one run.

import { get, runData, runPage } from "./api.js";
import { $, csv, download, el, empty, fill, settled } from "./dom.js";
import * as format from "./format.js";
import { notify, trouble } from "./page.js";
import { VirtualTable } from "./vtable.js";

export class RoundTable {
  constructor(id, open) {
    this.id = id;
    this.open = open;
    $("#rounds-csv").addEventListener("click", () => this.save());
  }

  set(series, row) {
    this.series = series;
    const { columns } = series;
    this.lasted = columns.seconds?.map((value, at) => (at ? value - columns.seconds[at - 1] : value));
    if (!columns.round.length) return void fill($("#round-table"), empty("No round is committed yet"));
    this.table ??= this.make(columns, row);
    this.table.update(columns.round.map((_, at) => columns.round.length - 1 - at));
  }

  make(columns, row) {
    const of = (name, write) => (at) => write(columns === this.series.columns ? columns[name][at] : this.series.columns[name]?.[at]);
    const wanted = [
      { head: "Round", cell: (at) => this.button(this.series.columns.round[at]) },
      columns.committed_at && { head: "Committed", cell: (at) => format.moment(new Date(this.series.columns.committed_at[at] * 1000)) },
      columns.seconds && { head: "Took", number: true, cell: (at) => format.seconds(this.lasted[at]) },
      columns.reported && { head: "Counted", number: true, cell: (at) => (this.series.columns.asked[at] ? `${this.series.columns.reported[at]} of ${this.series.columns.asked[at]}` : "–") },
      columns[row.metric_name] && { head: format.capital(format.spoken(row.metric_name)), number: true, cell: of(row.metric_name, format.figure) },
      columns.train_loss && { head: "Train loss", number: true, cell: of("train_loss", format.figure) },
      columns.aggregation_error && { head: "Aggr. error", number: true, cell: of("aggregation_error", format.figure) },
      columns.bytes_up && { head: "Up", number: true, cell: of("bytes_up", format.bytes) },
      columns.bytes_down && { head: "Down", number: true, cell: of("bytes_down", format.bytes) },
      columns.epsilon && { head: "ε so far", number: true, cell: of("epsilon", format.number) },
    ].filter(Boolean);
    return new VirtualTable($("#round-table"), { caption: "Rounds, newest first", columns: wanted });
  }

  button(round) {
    return document.querySelector("#clients") && round > 0 ? el("button", { type: "button", class: "link-button", text: String(round), "aria-label": `Who took part in round ${round}`, click: () => this.open(round) }) : String(round);
  }

  save() {
    if (!this.series) return;
    const { columns, units } = this.series;
    const names = Object.keys(columns);
    const head = names.map((name) => (units[name] ? `${name} (${units[name]})` : name));
    download(`${this.id}-rounds.csv`, csv(head, columns.round.map((_, at) => names.map((name) => columns[name][at]))));
  }
}

export class Checkpoints {
  constructor(id) {
    this.id = id;
  }

  fetch(event) {
    event.preventDefault();
    const link = event.currentTarget;
    if (!link.hasAttribute("aria-busy")) fetchZip(link, `${this.id}-adapter-round-${link.href.split("/").at(-1)}`);
  }

  set(found, row) {
    if (!found.length) return void fill($("#checkpoint-table"), empty("No checkpoint is on the disk", "Each committed round leaves one, unless the store's retention removed it."));
    this.table ??= new VirtualTable($("#checkpoint-table"), { caption: "Checkpoints, newest first", columns: [
      { head: "Round", cell: (one) => String(one.round) },
      { head: "Committed", cell: (one) => format.moment(format.when(one.committed_at)) },
      { head: format.capital(format.spoken(row.metric_name)), number: true, cell: (one) => format.figure(one.metric) },
      { head: "On disk", number: true, cell: (one) => format.bytes(one.bytes) },
      { head: "Adapter", number: true, cell: (one) => el("a", { href: `${runPage(this.id)}/adapter/${one.round}.zip`, download: "", "aria-label": `Download the adapter of round ${one.round}`, text: "Download", click: (event) => this.fetch(event) }) },
    ] });
    this.table.update([...found].reverse());
  }
}

/** The first download of a round is exported before it is sent: that is said, and so is a failure. */
async function fetchZip(link, name) {
  link.textContent = "Preparing…";
  link.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(link.href, { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error((await answer.json()).error?.message ?? `The server answered ${answer.status}.`);
    download(name, await answer.blob(), "application/zip");
  } catch (error) {
    notify("bad", error.message);
  }
  link.textContent = "Download";
  link.removeAttribute("aria-busy");
}

export class Configuration {
  constructor(id) {
    this.id = id;
    $("#config-filter").addEventListener("input", settled(() => this.show(), 80));
    $("#config-other").addEventListener("change", () => this.load());
  }

  async load() {
    const other = $("#config-other").value;
    try {
      const found = await get(`${runData(this.id)}/config${other ? `?other=${encodeURIComponent(other)}` : ""}`);
      this.config = found.config;
      this.difference = found.difference;
      this.show();
      if (!this.named) this.others();
    } catch (error) {
      trouble($("#config-table"), error, () => this.load());
    }
  }

  async others() {
    this.named = true;
    const { runs } = await get("/data/runs");
    $("#config-other").append(...runs.filter((row) => row.id !== this.id).slice(0, 300).map((row) => el("option", { value: row.id, text: `${row.name} (${row.id.slice(0, 15)}, seed ${row.seed})` })));
  }

  show() {
    const words = $("#config-filter").value.toLowerCase();
    const write = (value) => (value === null || value === undefined ? "null" : typeof value === "object" ? JSON.stringify(value) : String(value));
    const shown = (this.difference ?? this.config).filter((one) => one.key.toLowerCase().includes(words) || write(one.value ?? one.here).toLowerCase().includes(words));
    if (!shown.length) return void fill($("#config-table"), empty(this.difference && !words ? "No difference" : "No setting matches", this.difference && !words ? "Both runs have the same configuration." : "Change the filter."));
    const heads = this.difference ? ["Setting", "This run", "The other"] : ["Setting", "Value"];
    const cells = (one) => (this.difference ? [write(one.here), write(one.there)] : [write(one.value)]);
    fill($("#config-table"), el("table", { class: "tight" }, el("caption", { class: "hidden", text: "Settings" }),
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col", text: head })))),
      el("tbody", {}, shown.map((one) => el("tr", {}, el("th", { scope: "row", class: "config-key", text: one.key }), cells(one).map((value) => el("td", { class: "config-value", text: value })))))));
  }
}
