// A table of any length: only the rows that are in sight are in the page.

import { el, fill } from "./dom.js";

const ROW = 29; // px, as in pages.css
const MORE = 8; // rows beyond the edges

/**
 * Fills `host` with a table. columns: {head, number, why, cell(row, index) → text or node}. rows: an array, or `count`
 * and `at(index)`. Call `update` with new rows; the place that is looked at stays.
 */
export class VirtualTable {
  constructor(host, { columns, caption, rowProps = () => ({}) }) {
    this.columns = columns;
    this.rowProps = rowProps;
    this.rows = [];
    this.first = -1;
    this.above = el("tbody", { "aria-hidden": "true" });
    this.body = el("tbody");
    this.below = el("tbody", { "aria-hidden": "true" });
    this.table = el("table", { class: "tight fixed-rows" },
      el("caption", { class: "hidden", text: caption }),
      el("thead", {}, el("tr", {}, columns.map((column) => el("th", { scope: "col", class: column.number ? "number" : "", text: column.head })))),
      this.above, this.body, this.below);
    this.box = host;
    host.classList.add("scroll", "virtual");
    host.tabIndex = 0;
    host.setAttribute("role", "region");
    host.setAttribute("aria-label", caption);
    fill(host, this.table);
    host.addEventListener("scroll", () => this.draw(), { passive: true });
    this.sizes = new ResizeObserver(() => this.draw(true));
    this.sizes.observe(host);
  }

  update(rows) {
    this.rows = rows;
    this.table.setAttribute("aria-rowcount", rows.length + 1);
    this.box.classList.toggle("short", rows.length <= 10);
    this.draw(true);
  }

  draw(anyway = false) {
    const tall = this.box.clientHeight || 400;
    const first = Math.max(0, Math.min(Math.floor(this.box.scrollTop / ROW) - MORE, this.rows.length - 1));
    const last = Math.min(this.rows.length, first + Math.ceil(tall / ROW) + 2 * MORE);
    if (!anyway && first === this.first && last === this.last) return;
    this.first = first;
    this.last = last;
    space(this.above, first, this.columns.length);
    space(this.below, this.rows.length - last, this.columns.length);
    fill(this.body, this.rows.slice(first, last).map((row, place) => this.row(row, first + place)));
  }

  row(row, index) {
    const cells = this.columns.map((column, place) => {
      const value = column.cell(row, index);
      return el(place ? "td" : "th", { class: column.number ? "number" : column.why ? "ellipsis" : "", scope: place ? null : "row", title: column.why && typeof value === "string" ? value : null }, value ?? "–");
    });
    return el("tr", { "aria-rowindex": index + 2, ...this.rowProps(row, index) }, cells);
  }
}

function space(body, rows, columns) {
  if (!rows) return fill(body);
  const cell = el("td", { colspan: columns, class: "space" });
  cell.style.height = `${rows * ROW}px`;
  return fill(body, el("tr", {}, cell));
}
