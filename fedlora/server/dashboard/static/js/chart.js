// Charts: uPlot where it is there; and always the numbers, as a table and as CSV.

import { csv, download, el, fill } from "./dom.js";
import { number, writer } from "./format.js";
import { VirtualTable } from "./vtable.js";

export const COLOURS = 8;
const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];
const WIDE = 24; // px that a character of a tick may take at most is about a third of it

export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Line for the series number `place`: its colour, then its dashes where colours are used up. */
export const look = (place) => ({ colour: `--s${place % COLOURS}`, dash: DASHES[Math.floor(place / COLOURS) % DASHES.length] });

/**
 * A figure with a title, a legend, a plot of fixed height and its numbers. Call `set` with
 * {x, lines: [{label, values, place, kind}], band: {outer: [low, high], inner: [low, high]}}.
 * x: {values, label, unit}; unit: of the values; kind: "line" or "bars".
 */
export class Chart {
  constructor(host, { title, unit = "", note = "", log = false, choose = null, sync = null, file = "fedlora", height = 216, whole = false }) {
    Object.assign(this, { title, unit, sync, file, height, whole });
    this.log = false;
    this.host = host;
    this.legend = el("ul", { class: "legend" });
    this.plot = el("div", { class: "plot", role: "img", "aria-label": title });
    this.plot.style.height = `${height}px`;
    this.tools = el("div", { class: "row" });
    if (choose) this.tools.append(choose);
    if (log) this.tools.append(this.scales());
    this.heading = el("h3", { text: title });
    this.note = el("p", { class: "small muted chart-note", text: note });
    this.numbers = el("details", { class: "more", toggle: () => this.table() },
      el("summary", { text: "Numbers" }));
    fill(host, el("figcaption", {}, el("div", {}, this.heading, this.note), this.tools), this.legend, this.plot, this.numbers);
    host.classList.add("card", "chart");
    document.addEventListener("themechange", () => this.draw());
    new ResizeObserver(() => this.resize()).observe(this.plot);
  }

  scales() {
    const button = (words, log) => el("button", { type: "button", text: words, "aria-pressed": String(log === this.log), click: () => {
      this.log = log;
      for (const one of group.children) one.setAttribute("aria-pressed", String(one.textContent === words));
      this.draw();
    } });
    const group = el("div", { class: "segmented", role: "group", "aria-label": `Scale of ${this.title}` }, button("Linear", false), button("Log", true));
    return group;
  }

  set(data, { title = this.title, unit = this.unit, note = null } = {}) {
    this.data = data;
    this.title = title;
    this.unit = unit;
    this.heading.textContent = title;
    if (note !== null) this.note.textContent = note;
    if (this.made && this.made.key === this.shape() && this.unchanged()) return;
    if (this.made && this.made.key === this.shape()) this.made.plot.setData(this.columns());
    else this.draw();
    this.describe();
    if (this.numbers.open) this.table();
  }

  unchanged() {
    const before = this.drawn;
    this.drawn = JSON.stringify(this.columns());
    return before === this.drawn;
  }

  shape() {
    const { x, lines, band } = this.data;
    return JSON.stringify([x.label, x.unit, this.unit, lines.map((line) => [line.label, line.place, line.kind]), Boolean(band)]);
  }

  /** A logarithm has no place for zero and less. */
  columns() {
    const { x, lines, band } = this.data;
    const sides = band ? [...band.outer, ...band.inner] : [];
    const clean = (values) => (this.log ? values.map((value) => (value > 0 ? value : null)) : values);
    return [x.values, ...sides.map(clean), ...lines.map((line) => clean(line.values))];
  }

  draw() {
    if (!this.data) return;
    this.made?.plot.destroy();
    this.made = null;
    const some = this.data.lines.some((line) => line.values.some((value) => value !== null && value !== undefined));
    if (!some) return void fill(this.plot, el("p", { class: "plot-empty", text: "No numbers yet." }));
    if (typeof uPlot === "undefined") {
      fill(this.plot, el("p", { class: "plot-empty", text: "The charts' script is not installed: the numbers are below." }));
      this.plot.style.height = "48px";
      this.numbers.open = true;
      return;
    }
    fill(this.plot);
    const plot = new uPlot(this.options(), this.columns(), this.plot);
    this.made = { plot, key: this.shape() };
    this.drawn = JSON.stringify(this.columns());
    this.describe();
    this.keep();
  }

  options() {
    const { x, lines, band } = this.data;
    const font = "11px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
    const axis = { stroke: css("--ink-3"), font, labelFont: font, grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line-strong"), width: 1, size: 4 } };
    const write = writer(this.unit);
    const few = x.values.length <= 40;
    const sides = band ? [0, 1, 2, 3].map(() => ({ stroke: "transparent", width: 0, points: { show: false } })) : [];
    return {
      width: Math.max(this.plot.clientWidth, 120), height: this.height, padding: [8, 20, 0, 0], pxAlign: 0.5,
      legend: { show: false },
      cursor: { sync: this.sync ? { key: this.sync, setSeries: false } : undefined, drag: { x: true, y: false }, points: { size: 7 }, y: false },
      scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { distr: this.log ? 3 : 1, range: this.log ? undefined : (_, low, high) => room(low, high, this.unit === "bytes" || lines.some((line) => line.kind === "bars")) } },
      axes: [
        { ...axis, label: x.unit ? `${x.label}` : x.label, labelSize: 18, size: 28, space: 44, grid: { show: false }, incrs: x.unit ? undefined : [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 5000], values: (_, ticks) => ticks.map((tick) => writer(x.unit)(tick)) },
        { ...axis, space: 32, gap: 4, incrs: this.whole ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] : undefined, size: (_, ticks) => Math.max(32, ...(ticks ?? []).map((tick) => 12 + String(tick).length * WIDE / 3.8)), values: (_, ticks) => this.ticks(ticks, write) },
      ],
      bands: band ? [{ series: [2, 1], fill: css("--band") }, { series: [4, 3], fill: css("--band-in") }] : [],
      series: [{}, ...sides, ...lines.map((line) => this.series(line, few))],
      hooks: { setCursor: [(plot) => this.point(plot)] },
    };
  }

  series(line, few) {
    const { colour, dash } = look(line.place ?? 0);
    const stroke = css(line.colour ?? colour);
    const base = { label: line.label, stroke, width: 1.75, dash: line.dash ?? dash, spanGaps: true, points: { show: few && line.kind !== "bars", size: 5, fill: css("--surface"), stroke, width: 1.5 } };
    return line.kind === "bars" ? { ...base, width: 0, fill: stroke, paths: uPlot.paths.bars({ size: [0.8, 24, 1] }), points: { show: false } } : base;
  }

  /** The same number of decimals for all ticks of an axis. */
  ticks(ticks, write) {
    if (write !== number) return ticks.map((tick) => (tick === null ? "" : write(tick)));
    const steps = ticks.filter((tick) => tick !== null);
    if (this.log) return ticks.map((tick) => (tick === null || !/^1e/.test(tick.toExponential()) ? "" : power(tick)));
    const step = steps.length > 1 ? Math.abs(steps[1] - steps[0]) : 1;
    if (step < 1e-5) return ticks.map((tick) => (tick === null ? "" : tick === 0 ? "0" : number(tick)));
    const places = Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9)));
    const exact = Math.abs(step * 10 ** places - Math.round(step * 10 ** places)) > 1e-6 ? places + 1 : places;
    return ticks.map((tick) => (tick === null ? "" : Math.abs(tick) >= 1e5 ? number(tick) : tick.toFixed(exact).replace("-", "−")));
  }

  resize() {
    if (this.made) this.made.plot.setSize({ width: Math.max(this.plot.clientWidth, 120), height: this.height });
  }

  /** The legend shows the last values, or those under the pointer. */
  point(plot) {
    const at = plot.cursor.idx;
    this.keep(at === null || at === undefined ? null : at);
  }

  keep(at = null) {
    const { x, lines } = this.data;
    const write = writer(this.unit);
    const place = at ?? x.values.length - 1;
    const where = at === null ? null : el("li", { class: "where", text: x.unit ? writer(x.unit)(x.values[at]) : `${x.label} ${number(x.values[at])}` });
    fill(this.legend, lines.map((line) => {
      const value = at === null ? last(line.values) : line.values[place];
      return el("li", {}, el("span", { class: `key s${(line.place ?? 0) % COLOURS}`, "aria-hidden": "true", data: { dash: String((line.dash ?? look(line.place ?? 0).dash).length > 0) } }), el("span", { class: "legend-name", title: line.label, text: line.label }), el("b", { text: write(value) }));
    }), where);
  }

  describe() {
    const { x, lines } = this.data;
    const write = writer(this.unit);
    const said = lines.slice(0, 6).map((line) => `${line.label}: ${write(last(line.values))} at last`).join("; ");
    this.plot.setAttribute("aria-label", `${this.title} against ${x.label}, ${x.values.length} points. ${said}. The numbers are in the table below.`);
    if (!this.made) this.keep();
  }

  table() {
    if (!this.numbers.open || !this.data) return;
    const { x, lines, band } = this.data;
    const write = writer(this.unit);
    const sides = band ? [["least", band.outer[0]], ["lower quartile", band.inner[0]], ["upper quartile", band.inner[1]], ["largest", band.outer[1]]] : [];
    const columns = [...lines.map((line) => [line.label, line.values]), ...sides];
    const key = columns.map(([name]) => name).join("\n");
    if (this.key !== key) {
      this.key = key;
      const save = el("button", { type: "button", class: "plain", text: "Save as CSV", click: () => this.save() });
      const box = el("div");
      fill(this.numbers, el("summary", { text: "Numbers" }), save, box);
      this.rows = new VirtualTable(box, {
        caption: `Numbers of ${this.title}`,
        columns: [{ head: x.label, cell: (at) => writer(x.unit)(x.values[at]) }, ...columns.map(([name], place) => ({ head: name, number: true, cell: (at) => write(this.cells[place][at]) }))],
      });
    }
    this.cells = columns.map(([, values]) => values);
    this.names = columns.map(([name]) => name);
    this.rows.update(x.values.map((_, at) => at).filter((at) => columns.some(([, values]) => values[at] !== null && values[at] !== undefined)));
  }

  /** The exact values, in base units. */
  save() {
    const { x } = this.data;
    const head = [x.unit ? `${x.label} (${x.unit})` : x.label, ...this.names.map((name) => (this.unit ? `${name} (${this.unit})` : name))];
    download(`${this.file}-${this.title.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-")}.csv`, csv(head, this.rows.rows.map((at) => [x.values[at], ...this.cells.map((values) => values[at])])));
  }
}

function last(values) {
  for (let at = values.length - 1; at >= 0; at -= 1) if (values[at] !== null && values[at] !== undefined) return values[at];
  return null;
}

/** Air above and below; bars stand on zero, and so does what is near it. */
function room(low, high, bars) {
  if (low === null || high === null || low === undefined) return [0, 1];
  if (bars) return [0, high > 0 ? high * 1.08 : 1];
  const span = high - low || Math.abs(high) || 1;
  const floor = low >= 0 && low < span * 0.6 ? 0 : low - span * 0.06;
  return [floor, high + span * 0.08];
}

const DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
function power(value) {
  const exponent = Math.round(Math.log10(value));
  if (exponent >= -2 && exponent <= 3) return number(value);
  return `10${exponent < 0 ? "⁻" : ""}${[...String(Math.abs(exponent))].map((digit) => DIGITS[digit]).join("")}`;
}
