// The page's frame: which view is shown.
import { $, complain } from "./common.js";
import { startInside } from "./inside.js";
import { startPlay } from "./play.js";
import { startRuns } from "./runs.js";

const views = { runs: startRuns(), play: startPlay(), inside: startInside() };
let shown = null;

function show() {
  const name = location.hash.slice(1) in views ? location.hash.slice(1) : "runs";
  if (shown && shown !== name) views[shown].leave?.();
  complain("");
  for (const id of Object.keys(views)) {
    $(`#${id}`).hidden = id !== name;
    const link = $(`nav a[href="#${id}"]`);
    if (id === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${$(`#${name} h2`).textContent} · llm.mojo`;
  shown = name;
  views[name].enter();
}

addEventListener("hashchange", show);
show();
