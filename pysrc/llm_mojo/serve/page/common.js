// What all views use: elements, questions to the server, what went wrong, tokens as they are shown.
export const $ = (selector, root = document) => root.querySelector(selector);

// Makes an element with attributes, properties of its style as {style: {...}}, and children; texts are only ever text.
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") Object.assign(element.style, value);
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false && value !== undefined) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export function complain(text) {
  const problem = $("#problem");
  problem.textContent = text;
  problem.hidden = !text;
}

// Asks the server; an error has the server's own words.
export async function ask(path, body, signal) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(path, { ...options, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error?.message ?? `The server answers with status ${answer.status}.`);
  }
  return answer;
}

export async function fillModels(select) {
  const models = (await (await ask("/v1/models")).json()).data.map((model) => model.id);
  const chosen = select.value;
  select.replaceChildren(...models.map((id) => make("option", { value: id }, id)));
  if (models.includes(chosen)) select.value = chosen;
  if (!models.length) complain("No run has a checkpoint yet: train one (llm-mojo train my.txt), or name a model when you start llm-mojo serve.");
  return models;
}

// Bytes of a token as the server spells it, and whether they are text by themselves.
export function bytesOf(word) {
  if (!word.startsWith("bytes:")) return { bytes: new TextEncoder().encode(word), isText: true };
  const bytes = word.slice(6).match(/\\x[0-9a-f]{2}/g).map((each) => parseInt(each.slice(2), 16));
  return { bytes: new Uint8Array(bytes), isText: false };
}

export function visible(word) {
  const { bytes, isText } = bytesOf(word);
  if (!isText) return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return word.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");
}
