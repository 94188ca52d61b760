import { act } from "./api.js";
import { $, $$ } from "./dom.js";
import { carryOut, notify, reveal } from "./page.js";

$("#new-access").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const { csrf: _, ...fields } = Object.fromEntries(new FormData(event.target));
    const made = await act("POST", "/access", fields);
    await reveal({ title: `The access token of ${made.name}`, text: `${made.note} It is shown this once.`, secret: made.secret });
    location.reload();
  } catch (error) {
    notify("bad", error.message);
  }
});

for (const button of $$("[data-remove]")) {
  button.addEventListener("click", async () => {
    const question = { title: `Remove ${button.dataset.name}?`, text: "Whoever has logged in with it is logged out at once.", action: "Remove", danger: true };
    if (await carryOut(question, "DELETE", button.dataset.remove)) button.closest("tr").remove();
  });
}
