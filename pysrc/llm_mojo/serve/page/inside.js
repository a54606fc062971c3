// Inside: the attention of every layer and head as maps, and which tokens a token looked at.
import { $, ask, complain, fillModels, make, visible } from "./common.js";

// A map as dark on white, whatever the theme: it is read like ink.
function paint(canvas, map, size) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d"), image = context.createImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    const share = Math.sqrt(map[i] / 255);
    image.data.set([255 - 76 * share, 255 - 184 * share, 255 - 255 * share, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

export function startInside() {
  const form = $("#inside-form");
  let turn = 0;

  function large(tokens, map, layer, head) {
    const size = tokens.length, canvas = make("canvas", { role: "img", "aria-label": `Attention of layer ${layer + 1}, head ${head + 1}` });
    paint(canvas, map, size);
    const words = tokens.map((word, i) => make("span", { role: "button", class: "token", tabindex: i ? -1 : 0, "aria-label": `token ${i + 1}: ${visible(word)}` }, word.startsWith("bytes:") ? visible(word) : word));
    const said = make("p", { class: "hint", role: "status" }, "Choose a token: those that it looks at are tinted.");
    const choose = (at) => {
      words.forEach((word, i) => {
        word.style.background = `rgba(var(--tint), ${((0.6 * map[at * size + i]) / 255).toFixed(3)})`;
        word.style.textDecoration = i === at ? "underline 2px" : "none";
      });
      const order = [...Array(at + 1).keys()].sort((a, b) => map[at * size + b] - map[at * size + a]).slice(0, 3);
      said.textContent = `“${visible(tokens[at])}” looks at ${order.map((i) => `“${visible(tokens[i])}” (${i + 1}.) ${Math.round((100 * map[at * size + i]) / 255)}%`).join(", ")}`;
    };
    words.forEach((word, i) => { word.addEventListener("click", () => choose(i)); word.addEventListener("mouseover", () => choose(i)); word.addEventListener("focus", () => choose(i)); });
    const text = make("div", { class: "text", role: "group", "aria-label": "Tokens" }, ...words);
    text.addEventListener("keydown", (event) => {
      const at = words.indexOf(event.target), next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: size - 1 }[event.key];
      if (!words[next]) return;
      event.preventDefault();
      words[at].tabIndex = -1;
      words[next].tabIndex = 0;
      words[next].focus();
    });
    $("#head-large").replaceChildren(make("h3", {}, `Layer ${layer + 1}, head ${head + 1}`), make("div", { class: "large" }, canvas, make("div", {}, text, said)));
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const mine = ++turn;
    complain("");
    $("#heads").replaceChildren();
    $("#head-large").replaceChildren();
    try {
      for (let layer = 0, layers = 1; layer < layers; layer++) {
        $("#inside-state").textContent = `layer ${layer + 1} …`;
        const found = await (await ask("/api/attention", { model: form.model.value, text: form.text.value, layer })).json();
        if (mine !== turn) return;
        layers = found.layers;
        const bytes = Uint8Array.from(atob(found.maps), (each) => each.charCodeAt(0)), size = found.tokens.length;
        const heads = Array.from({ length: found.heads }, (_, head) => {
          const map = bytes.subarray(head * size * size, (head + 1) * size * size), canvas = make("canvas", { "aria-hidden": "true" });
          paint(canvas, map, size);
          const button = make("button", { type: "button", "aria-pressed": "false", "aria-label": `Layer ${layer + 1}, head ${head + 1}`, onclick: () => {
            for (const other of document.querySelectorAll("#heads button")) other.setAttribute("aria-pressed", other === button);
            large(found.tokens, map, layer, head);
          } }, canvas);
          return button;
        });
        $("#heads").append(make("h3", {}, `Layer ${layer + 1}`), make("div", { class: "layer" }, ...heads));
      }
      $("#inside-state").textContent = "";
      $("#heads button")?.click();
    } catch (error) {
      $("#inside-state").textContent = "";
      complain(error.message);
    }
  });
  return { enter: () => fillModels(form.model).catch((error) => complain(error.message)) };
}
