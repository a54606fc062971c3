// Play: text as it comes, each token tinted by its probability, with what else could stand in its place.
import { $, ask, bytesOf, complain, fillModels, make, visible } from "./common.js";

const ALTERNATIVES = 10;

// The events of an answer that comes as a stream.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const data = text.slice(0, end).replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

export function startPlay() {
  const form = $("#play-form"), popup = $("#alternatives");
  let promptIds = [], samples = [], stop = null, owner = null;

  function settings() {
    const value = (name) => +form.elements[name].value;
    return { model: form.model.value, temperature: value("temperature"), top_p: value("top_p"), top_k: value("top_k"), max_tokens: value("max_tokens"), seed: value("seed"), n: value("n") };
  }

  // Draws the tokens of a sample: whole characters where tokens are parts of them, unless every token is wanted.
  function append(sample, token) {
    const { bytes, isText } = bytesOf(token.word), all = $("#play-bytes").checked;
    const text = all && !isText ? visible(token.word) : sample.decoder.decode(bytes, { stream: true });
    const share = Math.exp(token.logprob), percent = (100 * share).toFixed(share < 0.01 ? 2 : 0);
    // No <button>: lines would break between the tokens of a word.
    const button = make("span", {
      role: "button", class: `token${all && !isText ? " bytes" : ""}`, tabindex: sample.box.querySelector(".token") ? -1 : 0,
      "aria-label": `${visible(token.word)}, ${percent} percent`, "aria-haspopup": "dialog",
      style: { background: `rgba(var(--tint), ${(0.38 * (1 - share)).toFixed(3)})` },
    }, text);
    button.token = token;
    button.sample = sample;
    token.button = button;
    sample.box.append(button);
  }

  function redraw() {
    for (const sample of samples) {
      sample.decoder = new TextDecoder();
      sample.box.classList.toggle("split", $("#play-bytes").checked);
      sample.box.replaceChildren(make("span", { class: "prompt" }, sample.prompt));
      for (const token of sample.tokens) append(sample, token);
    }
  }

  function newSample(number, prompt, tokens = []) {
    const box = make("div", { class: "text", role: "group", "aria-label": `Sample ${number + 1}` });
    return { box, prompt, tokens: [...tokens], decoder: new TextDecoder() };
  }

  async function write(prompts, wanted, targets) {
    stop?.abort();
    stop = new AbortController();
    const mine = stop;
    hide();
    complain("");
    $("#play-stop").disabled = false;
    $("#play-state").textContent = "writing …";
    const begin = performance.now();
    let count = 0;
    try {
      const answer = await ask("/v1/completions", { ...wanted, prompt: prompts, stream: true, logprobs: ALTERNATIVES }, mine.signal);
      for await (const event of events(answer)) {
        for (const choice of event.choices) {
          const sample = targets[choice.index], logprobs = choice.logprobs;
          logprobs.tokens.forEach((word, i) => {
            const token = { word, id: choice.token_ids[i], logprob: logprobs.token_logprobs[i], top: logprobs.top_token_ids[i], words: Object.keys(logprobs.top_logprobs[i]), shares: logprobs.top_logprobs[i] };
            // The end of a text is a token too, which is not shown.
            if (choice.finish_reason === "stop" && i === logprobs.tokens.length - 1 && choice.text === "") return;
            sample.tokens.push(token);
            append(sample, token);
            count += 1;
          });
        }
      }
      $("#play-state").textContent = `${count} tokens, ${(count / ((performance.now() - begin) / 1000)).toFixed(0)} a second`;
    } catch (error) {
      $("#play-state").textContent = error.name === "AbortError" ? "stopped" : "";
      if (error.name !== "AbortError") complain(error.message);
    }
    if (stop === mine) $("#play-stop").disabled = true;
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wanted = settings();
    try {
      complain("");
      promptIds = (await (await ask("/api/tokens", { model: wanted.model, text: form.prompt.value })).json()).ids;
    } catch (error) {
      complain(error.message);
      return;
    }
    samples = Array.from({ length: wanted.n }, (_, i) => newSample(i, form.prompt.value));
    $("#samples").replaceChildren(...samples.map((sample) => sample.box));
    redraw();
    await write(promptIds, wanted, samples);
  });

  // From an alternative on: the tokens before it stay, and the prompt is given as ids.
  async function goOn(sample, index, id, word, logprob) {
    const before = sample.tokens.slice(0, index), old = sample.tokens[index];
    sample.tokens = [...before, { ...old, word, id, logprob }];
    redraw();
    const ids = [...promptIds, ...sample.tokens.map((token) => token.id)];
    const left = Math.max(1, settings().max_tokens - sample.tokens.length);
    await write(ids, { ...settings(), n: 1, max_tokens: left }, [sample]);
  }

  function show(button) {
    if (owner === button && !popup.hidden) return;
    owner = button;
    const { token, sample } = button, index = sample.tokens.indexOf(token);
    const words = new Map(token.words.map((word) => [token.shares[word], word]));
    const rows = token.top.map(([id, logprob]) => {
      const word = words.get(logprob) ?? "?";
      return make("button", { type: "button", class: id === token.id ? "chosen" : "", onclick: () => goOn(sample, index, id, word, logprob) },
        make("span", {}, visible(word)), make("span", { class: "share" }, `${(100 * Math.exp(logprob)).toFixed(1)}%`));
    });
    popup.replaceChildren(...rows);
    popup.hidden = false;
    const place = button.getBoundingClientRect(), parent = document.documentElement;
    popup.style.left = `${Math.max(8, Math.min(place.left, parent.clientWidth - popup.offsetWidth - 8)) + scrollX}px`;
    popup.style.top = `${place.bottom + scrollY + 2}px`;
  }

  function hide() {
    popup.hidden = true;
    owner = null;
  }

  const area = $("#samples");
  area.addEventListener("mouseover", (event) => { if (event.target.token) show(event.target); });
  area.addEventListener("focusin", (event) => { if (event.target.token) show(event.target); });
  area.addEventListener("click", (event) => { if (event.target.token) { show(event.target); event.target.focus(); } });
  area.addEventListener("keydown", (event) => {
    const button = event.target;
    if (!button.token) return;
    const buttons = [...button.sample.box.querySelectorAll(".token")], at = buttons.indexOf(button);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (next !== undefined && buttons[next]) {
      event.preventDefault();
      button.tabIndex = -1;
      buttons[next].tabIndex = 0;
      buttons[next].focus();
    }
    if (event.key === "ArrowDown" || event.key === "Enter") {
      event.preventDefault();
      show(button);
      popup.querySelector("button")?.focus();
    }
  });
  popup.addEventListener("keydown", (event) => {
    const rows = [...popup.querySelectorAll("button")], at = rows.indexOf(event.target);
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      rows[(at + (event.key === "ArrowDown" ? 1 : rows.length - 1)) % rows.length].focus();
    }
    if (event.key === "Escape") {
      const back = owner;
      hide();
      back?.focus({ preventScroll: true });
      hide();
    }
  });
  document.addEventListener("click", (event) => { if (!popup.contains(event.target) && !event.target.token) hide(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("resize", hide);
  $("#play-stop").addEventListener("click", () => stop?.abort());
  $("#play-bytes").addEventListener("change", redraw);
  return {
    enter: () => fillModels(form.model).catch((error) => complain(error.message)),
    leave: hide,
  };
}
