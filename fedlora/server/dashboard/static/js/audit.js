import { $, $$, settled } from "./dom.js";
import "./page.js";

$("#filter")?.addEventListener("input", settled((event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of $$("#entries tbody tr")) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
}, 80));
