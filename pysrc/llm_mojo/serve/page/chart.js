// Line charts in SVG: several curves over one x, linear or logarithmic axes.
const W = 720, H = 260, LEFT = 58, RIGHT = 12, TOP = 10, BOTTOM = 36;
const MOST_POINTS = 700;

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

export function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  if (size < 1e-3) return value.toExponential(1);
  return `${+value.toPrecision(4)}`;
}

function ticks(low, high, isLog) {
  if (isLog) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const step of [1, 2, 5]) found.push(step * 10 ** power);
    const inside = found.filter((each) => each >= low && each <= high);
    if (inside.length >= 2) return inside.length > 9 ? inside.filter((each) => /^1/.test(each.toExponential())) : inside;
  }
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Math.abs(at) < step / 1e6 ? 0 : at);
  return found;
}

export function smoothed(values, weight) {
  let mean = 0, sum = 0;
  return values.map((value) => {
    if (!Number.isFinite(value)) return NaN;
    mean = weight * mean + (1 - weight) * value;
    sum = weight * sum + (1 - weight);
    return mean / sum;
  });
}

// curves: [{label, colour, x: [...], y: [...], smooth, points: [[x, y] ...]}]
export function chart({ title, curves, xLabel, logX, logY }) {
  const figure = document.createElement("figure");
  const good = (x, y) => Number.isFinite(x) && Number.isFinite(y) && (!logX || x > 0) && (!logY || y > 0);
  const lines = curves.map((curve) => {
    const stride = Math.max(1, Math.ceil(curve.x.length / MOST_POINTS));
    const kept = (values) => values.map((y, i) => [curve.x[i], y]).filter(([x, y], i) => (i % stride === 0 || i === values.length - 1) && good(x, y));
    return { ...curve, raw: curve.smooth ? kept(curve.y) : [], line: kept(curve.smooth ? smoothed(curve.y, curve.smooth) : curve.y), dots: (curve.points ?? []).filter(([x, y]) => good(x, y)) };
  });
  const all = lines.flatMap((each) => [...each.line, ...each.dots]);
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img" });
  const caption = document.createElement("figcaption");
  figure.append(Object.assign(document.createElement("h3"), { textContent: title }), drawing, caption);
  if (!all.length) {
    caption.textContent = "Nothing to draw yet.";
    drawing.setAttribute("aria-label", `${title}: nothing to draw yet`);
    return figure;
  }
  // The first losses of a run would flatten everything else: one in a hundred may lie above.
  const ys = all.map(([, y]) => y).sort((a, b) => a - b), xs = all.map(([x]) => x);
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), ys[0], ys[Math.floor(0.99 * (ys.length - 1))]];
  for (const each of lines) for (const [, y] of each.dots.slice(1)) y1 = Math.max(y1, y);
  if (x0 === x1) x1 = x0 + 1;
  if (y0 === y1) { y1 = y0 * 1.1 || 1; y0 = y0 * 0.9; }
  const margin = logY ? 0 : 0.05 * (y1 - y0);
  y0 -= margin; y1 += margin;
  const scale = (low, high, from, to, isLog) => (value) => {
    const f = isLog ? Math.log : (each) => each;
    return from + (to - from) * (f(value) - f(low)) / (f(high) - f(low));
  };
  const px = scale(x0, x1, LEFT, W - RIGHT, logX), py = scale(y0, y1, H - BOTTOM, TOP, logY);
  for (const y of ticks(y0, y1, logY)) {
    drawing.append(svg("line", { x1: LEFT, x2: W - RIGHT, y1: py(y), y2: py(y), class: "grid" }), svg("text", { x: LEFT - 6, y: py(y) + 4, "text-anchor": "end" }, number(y)));
  }
  for (const x of ticks(x0, x1, logX)) drawing.append(svg("text", { x: px(x), y: H - BOTTOM + 16, "text-anchor": "middle" }, number(x)));
  drawing.append(svg("text", { x: (LEFT + W - RIGHT) / 2, y: H - 4, "text-anchor": "middle" }, `${xLabel}${logX ? ", logarithmic" : ""}`));
  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${Math.max(TOP, py(y)).toFixed(1)}`).join("");
  for (const each of lines) {
    if (each.raw.length) drawing.append(svg("path", { d: path(each.raw), class: "raw", stroke: `var(--${each.colour})` }));
    drawing.append(svg("path", { d: path(each.line), class: "curve", stroke: `var(--${each.colour})` }));
    for (const [x, y] of each.dots) drawing.append(svg("circle", { cx: px(x), cy: Math.max(TOP, py(y)), r: 3.5, fill: `var(--${each.colour})`, stroke: "var(--back)" }));
  }
  const last = (points) => (points.length ? number(points[points.length - 1][1]) : "none");
  caption.textContent = lines.map((each) => `${each.label}: ${last(each.line)}${each.dots.length ? `, validation ${last(each.dots)}` : ""}`).join(" · ");
  drawing.setAttribute("aria-label", `${title} over ${xLabel}. Last values: ${caption.textContent}`);
  return figure;
}
