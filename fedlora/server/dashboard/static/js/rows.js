// What several pages say of a run.

import { el, tag } from "./dom.js";
import * as format from "./format.js";

const LOUD = ["slow", "stalled"];
export const ENDED = ["finished", "stopped", "failed"];

/** The word that matters most: trouble before status. */
export const state = (row) => (LOUD.includes(row.health) ? row.health : row.stop_requested && row.status === "running" ? "stopping" : row.status);
export const stateTag = (row) => tag(state(row));
export const inTrouble = (row) => row.health === "stalled" || ["failed", "interrupted"].includes(row.status);
export const isActive = (row) => !ENDED.includes(row.status);
export const sent = (row) => (row.bytes_up === null ? null : row.bytes_up + row.bytes_down + (row.bytes_once ?? 0));

/** A thin bar with "n of N". */
export function progress(row) {
  const bar = el("progress", { value: row.round, max: Math.max(row.rounds, 1), class: state(row), "aria-label": `Round ${row.round} of ${row.rounds}` });
  return [`${format.number(row.round)} of ${format.number(row.rounds)}`, bar];
}

/** "accuracy" of "validation_accuracy": where is said once, in the head. */
export const shortMetric = (name) => format.spoken(name.replace(/^(validation|clients)_/, ""));

/** Sentences that must be read before any number. */
export function warnings(row) {
  const notices = [];
  const notice = (kind, strong, text, loud = false) => notices.push(el("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : "status" },
    el("div", {}, el("strong", { class: loud ? "loud" : "", text: strong }), text ? (loud ? [el("br"), text] : ` ${text}`) : null)));
  if (row.participation) notice("warn", row.participation, "", true);
  if (row.health === "stalled") notice("bad", "This run is stalled.", row.health_reason, true);
  else if (row.health === "slow") notice("warn", "This run is slower than expected.", row.health_reason, true);
  else if (row.status === "interrupted") notice("bad", "The process that drove this run is gone.", row.health_reason || "It can be resumed from its last committed round.", true);
  else if (row.health_reason) notice("", "Waiting.", row.health_reason);
  if (row.reason) notice(row.status === "failed" ? "bad" : "", row.status === "failed" ? "Failed." : "Ended.", row.reason);
  return notices;
}
