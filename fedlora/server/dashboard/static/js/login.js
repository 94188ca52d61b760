// A link's secret stands behind the "#", which no server sees: it goes into the form, and out of the address.
import { $ } from "./dom.js";

function take() {
  const secret = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!secret) return;
  history.replaceState(null, "", location.pathname + location.search);
  const form = $("#login form");
  form.elements.token.value = secret;
  form.requestSubmit();
}

addEventListener("hashchange", take);
take();
