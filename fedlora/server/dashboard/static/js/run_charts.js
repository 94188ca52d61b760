// The curves of one run.

import { get, runData } from "./api.js";
import { Chart } from "./chart.js";
import { $, el, fill } from "./dom.js";
import { capital, spoken } from "./format.js";

const FIXED = new Set(["round", "seconds", "virtual_seconds", "committed_at", "bytes_up", "bytes_down", "bytes_once", "bytes_total", "reported", "asked", "epsilon"]);

export class Curves {
  constructor(id) {
    this.id = id;
    this.charts = new Map();
  }

  set(found) {
    this.found = found;
    const { columns } = found.series;
    if (!this.charts.size) fill($("#charts"));
    if (columns.round.length === 0) return void this.none();
    this.empty?.remove();
    this.main();
    if (found.roster_metrics.length) this.spread(found.spread);
    this.loss();
    if (columns.aggregation_error) this.one("aggregation_error", { title: "Aggregation error", note: columns.aggregation_error_estimated?.some((value) => value === 1) ? "relative; estimated by a sketch" : "relative to the exact average of the updates", log: true });
    if (columns.bytes_up) this.bytes();
    if (columns.epsilon) this.one("epsilon", { title: "Privacy spent", note: "ε so far, as the run's statement counts it" }, 7);
    this.others();
  }

  none() {
    this.empty ??= el("div", { class: "card empty" }, el("h2", { text: "No round is committed yet" }), el("p", { text: "The curves begin with the first one." }));
    $("#charts").append(this.empty);
  }

  chart(key, options) {
    if (!this.charts.has(key)) {
      const host = el("figure");
      $("#charts").append(host);
      this.charts.set(key, new Chart(host, { sync: "rounds", file: this.id, ...options }));
    }
    return this.charts.get(key);
  }

  x() {
    return { values: this.found.series.columns.round, label: "Round", unit: "" };
  }

  line(name, place, label) {
    const { columns, labels } = this.found.series;
    return { label: label ?? labels[name] ?? spoken(name), values: columns[name], place };
  }

  unit(name) {
    return this.found.series.units[name] === "bytes" || this.found.series.units[name] === "s" ? this.found.series.units[name] : "";
  }

  one(name, options, place = 0) {
    this.chart(name, options).set({ x: this.x(), lines: [this.line(name, place, options.title)] });
  }

  /** The main metric; others of its family have charts of their own. */
  main() {
    const name = this.found.row.metric_name;
    const { labels, columns } = this.found.series;
    if (!columns[name]) return;
    const title = capital(spoken(name.replace(/^(validation|clients)_/, "")));
    this.chart(name, { title, note: (labels[name] ?? "").replace(/^\S+ /, ""), log: false }).set({ x: this.x(), lines: [this.line(name, 0, "global model")] });
  }

  loss() {
    const { columns, labels } = this.found.series;
    const names = Object.keys(columns).filter((name) => /loss$/.test(name));
    if (!names.length) return;
    const short = { train_loss: "local training", validation_loss: "validation", clients_loss: "clients' held-out rows" };
    this.chart("loss", { title: "Loss", note: "nats", log: true }).set({ x: this.x(), lines: names.map((name, place) => this.line(name, place, short[name] ?? labels[name])) });
  }

  bytes() {
    const { columns } = this.found.series;
    const modes = { each: "in the round", total: "so far" };
    const chosen = this.bytesMode ?? "each";
    const choose = this.charts.has("bytes") ? null : el("select", { "aria-label": "Bytes of the round, or so far", change: (event) => { this.bytesMode = event.target.value; this.bytes(); } },
      Object.entries(modes).map(([value, text]) => el("option", { value, text })));
    const sum = (values) => { let so = 0; return values.map((value) => (so += value ?? 0)); };
    const of = (name) => (chosen === "each" ? columns[name].map((value, at) => (columns.round[at] === 0 ? null : value)) : sum(columns[name]));
    const lines = [{ label: "up", values: of("bytes_up"), place: 0 }, { label: "down", values: of("bytes_down"), place: 1 }];
    if (columns.bytes_once?.some((value) => value > 0)) lines.push({ label: "once", values: of("bytes_once"), place: 2 });
    this.chart("bytes", { title: "Bytes sent", unit: "bytes", note: "serialised tensors, all clients", choose }).set({ x: this.x(), lines });
  }

  /** What the strategy reports besides. */
  others() {
    const { columns, labels } = this.found.series;
    const drawn = new Set([this.found.row.metric_name, "aggregation_error"]);
    for (const name of Object.keys(columns)) {
      if (FIXED.has(name) || drawn.has(name) || /loss$/.test(name) || name.endsWith("_estimated") || name === "clients_units") continue;
      if (this.charts.size >= 12 && !this.charts.has(name)) break;
      this.one(name, { title: capital(spoken(name)), note: labels[name] === spoken(name) ? "" : labels[name] ?? "", log: false });
    }
  }

  /** How far the clients are from each other, in a metric of their own. */
  async spread(known) {
    const names = this.found.roster_metrics;
    const metric = names.includes(this.metric) ? this.metric : names.find((name) => name === "loss") ?? names[0];
    this.metric = metric;
    const choose = this.charts.has("spread") ? null : el("select", { "aria-label": "Which of the clients' figures", change: (event) => { this.metric = event.target.value; this.spread(); } },
      names.map((name) => el("option", { value: name, text: spoken(name), selected: name === metric })));
    const chart = this.chart("spread", { title: "Spread over clients", note: "median; dark: half of them; light: all", choose: names.length > 1 ? choose : null });
    try {
      const found = known?.metric === metric ? known : await get(`${runData(this.id)}/spread?metric=${encodeURIComponent(metric)}`);
      chart.set({ x: { values: found.round, label: "Round", unit: "" }, lines: [{ label: `median ${spoken(metric)}`, values: found.median, place: 0 }], band: { outer: [found.min, found.max], inner: [found.q1, found.q3] } },
        { unit: found.unit === "s" || found.unit === "bytes" ? found.unit : "" });
    } catch (error) {
      chart.set({ x: this.x(), lines: [] }, { note: error.message });
    }
  }
}
