// Clients × rounds on one canvas: only what is in sight is drawn. Arrow keys move, Enter opens a round.

import { css } from "./chart.js";
import { el, fill } from "./dom.js";

export const LETTERS = "rxdflt";
const TALL = 20; // px of a row
const HEAD = 24; // px of the line with the rounds' numbers
const LEAST = 6;
const MOST = 32;

export const outcomeClass = (letter) => `o-${LETTERS.includes(letter) ? letter : "n"}`;

/** pick(client, round, opened): something was pointed at, or opened. */
export class MatrixView {
  constructor(host, pick) {
    this.pick = pick;
    this.at = null;
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.space = el("div", { class: "matrix-space" }, this.canvas);
    this.box = el("div", { class: "matrix scroll", tabindex: "0", role: "application", "aria-label": "Outcomes, clients by rounds. Arrow keys move, Enter opens the round.", "aria-describedby": "matrix-said" }, this.space);
    fill(host, this.box);
    this.box.addEventListener("scroll", () => this.soon(), { passive: true });
    this.box.addEventListener("keydown", (event) => this.key(event));
    this.box.addEventListener("focus", () => this.move(this.at ?? { client: 0, column: this.matrix ? this.matrix.rounds.length - 1 : 0 }));
    this.box.addEventListener("pointermove", (event) => { const found = this.cell(event); if (found && event.pointerType === "mouse") this.show(found, false); });
    this.box.addEventListener("click", (event) => { const found = this.cell(event); if (found) this.show(found, true); });
    document.addEventListener("themechange", () => this.soon());
    this.sizes = new ResizeObserver(() => this.layout());
    this.sizes.observe(this.box);
  }

  set(matrix) {
    const followed = this.matrix && this.box.scrollLeft + this.box.clientWidth >= this.space.clientWidth - 40;
    const first = !this.matrix;
    this.matrix = matrix;
    this.layout();
    if (first || followed) this.box.scrollLeft = this.space.clientWidth;
  }

  layout() {
    if (!this.matrix) return;
    const { clients, rounds } = this.matrix;
    const wide = this.box.clientWidth;
    this.gutter = Math.round(Math.min(wide < 600 ? 92 : 168, Math.max(48, 16 + 7 * Math.max(...clients.map((name) => name.length), 1))));
    this.step = Math.max(LEAST, Math.min(MOST, Math.floor((wide - this.gutter - 8) / Math.max(rounds.length, 1))));
    this.space.style.width = `${Math.max(this.gutter + this.step * rounds.length + 20, 1)}px`;
    this.space.style.height = `${HEAD + TALL * clients.length + 4}px`;
    this.soon();
  }

  soon() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.draw(); });
  }

  draw() {
    if (!this.matrix) return;
    const { box, canvas, step, gutter } = this;
    const scale = devicePixelRatio || 1;
    const wide = box.clientWidth;
    const tall = Math.min(box.clientHeight, HEAD + TALL * this.matrix.clients.length + 4);
    if (canvas.width !== Math.round(wide * scale) || canvas.height !== Math.round(tall * scale)) {
      canvas.width = Math.round(wide * scale);
      canvas.height = Math.round(tall * scale);
      canvas.style.width = `${wide}px`;
      canvas.style.height = `${tall}px`;
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, wide, tall);
    const colours = Object.fromEntries([...LETTERS].map((letter) => [letter, css(`--o-${letter}`)]));
    const ink = { none: css("--o-n"), text: css("--ink-2"), soft: css("--ink-3"), surface: css("--surface"), focus: css("--focus"), line: css("--line") };
    const left = box.scrollLeft;
    const top = box.scrollTop;
    const firstRow = Math.floor(top / TALL);
    const lastRow = Math.min(this.matrix.clients.length, firstRow + Math.ceil(tall / TALL) + 1);
    const firstColumn = Math.floor(left / step);
    const lastColumn = Math.min(this.matrix.rounds.length, firstColumn + Math.ceil((wide - gutter) / step) + 1);
    for (let row = firstRow; row < lastRow; row += 1) {
      const cells = this.matrix.cells[row];
      for (let column = firstColumn; column < lastColumn; column += 1) {
        this.square(pen, cells[column], gutter + column * step - left, HEAD + row * TALL - top, colours, ink);
      }
    }
    this.mark(pen, left, top, ink);
    this.frameNames(pen, { wide, tall, left, top, firstRow, lastRow, firstColumn, lastColumn }, ink);
  }

  /** Colour and, where there is room, a sign, so that nobody needs the colour. */
  square(pen, letter, x, y, colours, ink) {
    const gap = this.step >= 8 ? 2 : 1;
    const width = this.step - gap;
    pen.fillStyle = colours[letter] ?? ink.none;
    if (letter === "." || letter === undefined) return void pen.fillRect(x, y + TALL / 2 - 1.5, width, 2);
    pen.fillRect(x, y + 1, width, TALL - 3);
    if (letter === "r" || this.step < 12) return;
    pen.fillStyle = ink.surface;
    pen.font = "600 11px system-ui, 'DejaVu Sans', sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText({ x: "×", d: "–", f: "!", l: "?", t: "›" }[letter] ?? "", x + width / 2, y + TALL / 2 - 0.5);
  }

  mark(pen, left, top, ink) {
    if (!this.at) return;
    pen.strokeStyle = ink.focus;
    pen.lineWidth = 2;
    pen.strokeRect(this.gutter + this.at.column * this.step - left - 1.5, HEAD + this.at.client * TALL - top - 0.5, this.step + 1, TALL - 0.5);
  }

  frameNames(pen, view, ink) {
    const { gutter, step } = this;
    pen.fillStyle = ink.surface;
    pen.fillRect(0, 0, gutter - 4, view.tall);
    pen.fillRect(0, 0, view.wide, HEAD - 2);
    pen.font = "11px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (let row = view.firstRow; row < view.lastRow; row += 1) {
      const y = HEAD + row * TALL - view.top + TALL / 2;
      if (y < HEAD) continue;
      pen.fillStyle = this.at?.client === row ? ink.focus : ink.text;
      pen.fillText(cut(pen, this.matrix.clients[row], gutter - 16), gutter - 10, y);
    }
    pen.textAlign = "center";
    pen.fillStyle = ink.soft;
    const every = [1, 2, 5, 10, 20, 50, 100, 200].find((one) => one * step >= 36) ?? 500;
    for (let column = view.firstColumn; column < view.lastColumn; column += 1) {
      const round = this.matrix.rounds[column];
      const x = gutter + column * step - view.left + (step - 2) / 2;
      if (round % every === 0 && x > gutter - 2) pen.fillText(String(round), x, HEAD / 2);
    }
    pen.textAlign = "right";
    pen.fillText("round", gutter - 10, HEAD / 2);
  }

  cell(event) {
    if (!this.matrix) return null;
    const edge = this.box.getBoundingClientRect();
    const x = event.clientX - edge.left - this.box.clientLeft;
    const y = event.clientY - edge.top - this.box.clientTop;
    if (x < this.gutter || y < HEAD || x > this.box.clientWidth || y > this.box.clientHeight) return null;
    const column = Math.floor((x - this.gutter + this.box.scrollLeft) / this.step);
    const client = Math.floor((y - HEAD + this.box.scrollTop) / TALL);
    return column < this.matrix.rounds.length && client < this.matrix.clients.length ? { client, column } : null;
  }

  key(event) {
    if (!this.matrix || event.ctrlKey || event.metaKey || event.altKey) return;
    const now = this.at ?? { client: 0, column: 0 };
    const page = Math.max(1, Math.floor(this.box.clientHeight / TALL) - 2);
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-page, 0], PageDown: [page, 0], Home: [0, -1e9], End: [0, 1e9] }[event.key];
    if (by) {
      event.preventDefault();
      this.move({ client: now.client + by[0], column: now.column + by[1] });
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.show(now, true);
    }
  }

  move(to) {
    if (!this.matrix?.clients.length || !this.matrix.rounds.length) return;
    const client = Math.max(0, Math.min(to.client, this.matrix.clients.length - 1));
    const column = Math.max(0, Math.min(to.column, this.matrix.rounds.length - 1));
    const x = column * this.step;
    const y = client * TALL;
    const { box } = this;
    if (x < box.scrollLeft) box.scrollLeft = x;
    if (x + this.step > box.scrollLeft + box.clientWidth - this.gutter) box.scrollLeft = x + this.step - box.clientWidth + this.gutter + 8;
    if (y < box.scrollTop) box.scrollTop = y;
    if (y + TALL > box.scrollTop + box.clientHeight - HEAD) box.scrollTop = y + TALL - box.clientHeight + HEAD + 4;
    this.show({ client, column }, false);
  }

  show(at, opened) {
    if (!opened && this.at && this.at.client === at.client && this.at.column === at.column) return;
    this.at = at;
    this.soon();
    this.pick(at.client, this.matrix.rounds[at.column], opened, this.matrix.cells[at.client][at.column]);
  }
}

function cut(pen, text, wide) {
  if (pen.measureText(text).width <= wide) return text;
  let kept = text;
  while (kept && pen.measureText(`${kept}…`).width > wide) kept = kept.slice(0, -1);
  return `${kept}…`;
}
