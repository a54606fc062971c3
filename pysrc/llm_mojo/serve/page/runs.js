// Runs: their curves, several over each other, and where each stands; running ones are looked at again and again.
import { $, ask, complain, make } from "./common.js";
import { chart, number } from "./chart.js";

const COLOURS = 7, POLL_MS = 1500;
const PANELS = [["loss", "Loss (nats per token)"], ["norm", "Gradient norm"], ["lr", "Learning rate"], ["speed", "Tokens per second"]];

export function startRuns() {
  const runs = new Map(); // name -> {shown, colour, log}
  let timer = null, folder = "";

  function column(log, name) {
    if (name === "speed") return log.train.tokens.map((tokens, i) => (1000 * tokens) / log.train.ms[i]);
    return log.train[name];
  }

  function sums(values, scale) {
    let sum = 0;
    return values.map((value) => (sum += (value ?? 0) * scale));
  }

  function axis(log, name) {
    if (name === "minutes") return sums(log.train.ms, 1 / 60000);
    if (name === "tokens") return sums(log.train.tokens, 1);
    return log.train.step;
  }

  function draw() {
    const form = $("#run-axes"), shown = [...runs].filter(([, run]) => run.shown && run.log);
    const x = form.x.value;
    const charts = PANELS.map(([name, title]) => {
      const curves = shown.map(([label, run]) => {
        const xs = axis(run.log, x), at = new Map(run.log.train.step.map((step, i) => [step, xs[i]]));
        return {
          label, colour: `c${run.colour}`, x: xs, y: column(run.log, name).map((value) => value ?? NaN),
          smooth: name === "lr" ? 0 : +form.smooth.value,
          points: name === "loss" ? run.log.val.map(([step, loss]) => [x === "step" ? step : at.get(step) ?? 0, loss ?? NaN]) : [],
        };
      });
      return chart({ title, curves, xLabel: x === "step" ? "steps" : x, logX: form.logx.checked, logY: form.logy.checked });
    });
    $("#charts").replaceChildren(...charts);
    const open = new Set([...document.querySelectorAll("#run-details details[open]")].map((each) => each.id));
    $("#run-details").replaceChildren(...shown.flatMap(([name, run]) => details(name, run.log)));
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  }

  function details(name, log) {
    const step = log.train.step.at(-1) ?? 0, recent = log.train.ms.slice(-50).filter(Number.isFinite).sort((a, b) => a - b);
    const ms = recent[Math.floor(recent.length / 2)];
    const best = log.val.filter(([, loss]) => Number.isFinite(loss)).sort((a, b) => a[1] - b[1])[0];
    const left = log.running && log.steps && ms ? ((log.steps - step) * ms) / 60000 : null;
    const facts = [
      ["State", log.running ? "running" : "ended"],
      ["Step", log.steps ? `${step} of ${log.steps}` : `${step}`],
      ["Time left", left === null ? "–" : left < 1 ? `${Math.round(left * 60)} s` : `${left.toFixed(1)} min`],
      ["Training loss", number(log.train.loss.at(-1) ?? NaN)],
      ["Best validation", best ? `${number(best[1])} at step ${best[0]}` : "–"],
      ["Newest checkpoint", log.checkpoint === null ? "none yet" : `step ${log.checkpoint}`],
    ];
    const rows = Object.entries(log.settings).map(([key, value]) => make("tr", {}, make("th", { scope: "row" }, key), make("td", {}, value)));
    const samples = log.samples.map(([at, text]) => make("div", {}, make("p", { class: "hint" }, `after step ${at}`), make("pre", { tabindex: 0 }, text)));
    return [
      make("h3", {}, name),
      ...(log.problem ? [make("p", { class: "hint" }, log.problem)] : []),
      make("dl", { class: "facts" }, ...facts.map(([key, value]) => make("div", {}, make("dt", {}, key), make("dd", {}, value)))),
      ...(samples.length ? [make("details", { id: `samples-${name}` }, make("summary", {}, "Samples"), ...samples)] : []),
      make("details", { id: `settings-${name}` }, make("summary", {}, "Settings"), make("table", {}, make("tbody", {}, ...rows))),
    ];
  }

  async function read(name, run) {
    const news = await (await ask(`/api/runs/${encodeURIComponent(name)}?from=${run.log?.next ?? 0}`)).json();
    if (run.log && news.from === run.log.next) {
      for (const key of Object.keys(news.train)) news.train[key] = run.log.train[key].concat(news.train[key]);
      news.val = run.log.val.concat(news.val);
    }
    run.log = news;
  }

  function list(found) {
    const rows = found.map(({ name, running }) => {
      const run = runs.get(name);
      const box = make("input", { type: "checkbox", onchange: () => { run.shown = box.checked; update(); } });
      box.checked = run.shown;
      const swatch = make("span", { class: "swatch", style: { background: `var(--c${run.colour})` } });
      return make("label", {}, box, swatch, make("span", {}, name), ...(running ? [make("span", { class: "running" }, "running")] : []));
    });
    if ($("#run-list").childElementCount !== rows.length || $("#run-list").dataset.key !== JSON.stringify(found.map((each) => [each.name, each.running]))) {
      $("#run-list").dataset.key = JSON.stringify(found.map((each) => [each.name, each.running]));
      const focused = [...$("#run-list").querySelectorAll("input")].indexOf(document.activeElement);
      $("#run-list").replaceChildren(...rows);
      if (focused >= 0) $("#run-list").querySelectorAll("input")[focused]?.focus();
    }
  }

  async function update() {
    clearTimeout(timer);
    try {
      const answer = await (await ask("/api/runs")).json();
      folder = answer.folder;
      for (const { name } of answer.runs) if (!runs.has(name)) runs.set(name, { shown: runs.size === 0, colour: runs.size % COLOURS, log: null });
      for (const name of [...runs.keys()]) if (!answer.runs.some((each) => each.name === name)) runs.delete(name);
      list(answer.runs);
      const news = answer.runs.filter(({ name, running }) => runs.get(name).shown && (running || !runs.get(name).log || runs.get(name).log.running));
      for (const { name } of news) await read(name, runs.get(name));
      draw();
      complain(answer.runs.length ? "" : `There are no runs in ${folder} yet. Train one: llm-mojo train my.txt`);
    } catch (error) {
      complain(error.message);
    }
    timer = setTimeout(update, POLL_MS);
  }

  $("#run-axes").addEventListener("input", draw);
  $("#run-axes").addEventListener("submit", (event) => event.preventDefault());
  return { enter: update, leave: () => clearTimeout(timer) };
}
