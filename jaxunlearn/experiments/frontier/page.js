// Draws the panels of a frontier and answers pointer, keyboard and filters. Nothing is loaded.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const SIZE = { width: 420, height: 330, left: 58, right: 14, top: 12, bottom: 46 };
const RADIUS = 4.6;
const SHAPES = { noop: "square", retrain: "diamond", finetune: "triangle" };
const BY_ID = new Map(DATA.points.map((point) => [point.id, point]));
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

function make(name, attributes = {}, parent = null, text = null) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

// What the reader asked for.
function state() {
  const knobs = {};
  for (const select of $$("select[data-knob]"))
    if (select.value !== "") (knobs[select.dataset.method] ??= {})[select.dataset.knob] = select.value;
  return {
    privacy: $("#privacy").value,
    methods: new Set($$("input[name=method]:checked").map((box) => box.value)),
    frontOnly: $("#front-only").checked,
    along: $("#along").value,
    knobs,
  };
}

function shown(point, asked) {
  if (point.fixed) return true;
  if (!asked.methods.has(point.method)) return false;
  if (asked.frontOnly && !point.front[asked.privacy]) return false;
  return Object.entries(asked.knobs[point.method] ?? {}).every(
    ([knob, value]) => String(point.knobs[knob]) === value,
  );
}

// Positions on an axis. A logarithmic one keeps a place at its start for 0.
function axis(measure, values, from, to) {
  const meta = DATA.measures[measure];
  const known = values.filter(Number.isFinite);
  if (meta.log) {
    const positive = known.filter((value) => value > 0);
    const low = Math.log10(Math.min(...positive)) - 0.08, high = Math.log10(Math.max(...positive)) + 0.08;
    const start = known.some((value) => value <= 0) ? from + 0.1 * (to - from) : from;
    const place = (value) =>
      value > 0 ? start + ((Math.log10(value) - low) / (high - low)) * (to - start) : from + 0.03 * (to - from);
    const ticks = [];
    const steps = high - low > 1.6 ? [1] : [1, 2, 5];
    for (let power = Math.floor(low); power <= high; power++)
      for (const step of steps) {
        const value = step * 10 ** power;
        if (Math.log10(value) >= low && Math.log10(value) <= high) ticks.push(value);
      }
    if (start !== from) ticks.unshift(0);
    return { place, ticks, meta };
  }
  let low = Math.min(...known), high = Math.max(...known);
  const room = (high - low || Math.abs(high) || 1) * 0.07;
  low -= room;
  high += room;
  const place = (value) => from + ((value - low) / (high - low)) * (to - from);
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
  const ticks = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) ticks.push(value);
  return { place, ticks, meta, step, low, high };
}

function text(value, meta, step = 0) {
  if (!Number.isFinite(value)) return "–";
  const scaled = value * meta.scale;
  const digits = step ? Math.max(0, Math.ceil(-Math.log10(step * meta.scale) - 1e-9)) : meta.decimals;
  return scaled.toFixed(Math.min(digits, 5)).replace("-", "−");
}

function tickText(value, scale) {
  if (scale.meta.log) return String(Number((value * scale.meta.scale).toPrecision(3)));
  return text(value, scale.meta, scale.step);
}

function draw(panel, asked, points) {
  const [xMeasure, yMeasure] = panel.dataset.axes.split(" ").map((m) => (m === "privacy" ? asked.privacy : m));
  const { width, height, left, right, top, bottom } = SIZE;
  const x = axis(xMeasure, DATA.points.map((p) => p.v[xMeasure][0]), left, width - right);
  const y = axis(yMeasure, DATA.points.map((p) => p.v[yMeasure][0]), height - bottom, top);
  panel.replaceChildren();
  panel.setAttribute("viewBox", `0 0 ${width} ${height}`);
  band(panel, x, xMeasure, true);
  band(panel, y, yMeasure, false);
  for (const value of x.ticks) {
    make("line", { class: "grid", x1: x.place(value), x2: x.place(value), y1: top, y2: height - bottom }, panel);
    make("text", { class: "tick", x: x.place(value), y: height - bottom + 15, "text-anchor": "middle" }, panel, tickText(value, x));
  }
  for (const value of y.ticks) {
    make("line", { class: "grid", x1: left, x2: width - right, y1: y.place(value), y2: y.place(value) }, panel);
    make("text", { class: "tick", x: left - 6, y: y.place(value) + 3.5, "text-anchor": "end" }, panel, tickText(value, y));
  }
  make("text", { class: "label", x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, panel, x.meta.label);
  const mid = (top + height - bottom) / 2;
  make("text", { class: "label", x: 13, y: mid, "text-anchor": "middle", transform: `rotate(-90 13 ${mid})` }, panel, y.meta.label);
  paths(panel, asked, points, (p) => [x.place(p.v[xMeasure][0]), y.place(p.v[yMeasure][0])]);
  for (const point of points) {
    const [cx, cy] = [x.place(point.v[xMeasure][0]), y.place(point.v[yMeasure][0])];
    if (!Number.isFinite(cx) || !Number.isFinite(cy)) continue;
    const group = make("g", { class: `point ${point.kind}${point.front[asked.privacy] ? " front" : ""}`, "data-id": point.id, tabindex: 0, role: "img", "aria-label": words(point, asked).replaceAll("\n", "; ") }, panel);
    whisker(group, x, y, point.v[xMeasure], point.v[yMeasure], cx, cy);
    mark(group, SHAPES[point.method] ?? "circle", cx, cy);
  }
}

// Where one more retrained model would lie.
function band(panel, scale, measure, across) {
  const bounds = DATA.bands[measure];
  if (!bounds || scale.meta.log) return;
  const [low, high] = bounds.map((value) => scale.place(Math.min(Math.max(value, scale.low), scale.high)));
  const { width, height, left, right, top, bottom } = SIZE;
  const box = across
    ? { x: Math.min(low, high), width: Math.abs(high - low), y: top, height: height - top - bottom }
    : { x: left, width: width - left - right, y: Math.min(low, high), height: Math.abs(high - low) };
  make("rect", { class: "band", ...box }, panel);
}

function whisker(group, x, y, xs, ys, cx, cy) {
  const inside = (value, scale) => (scale.meta.log ? scale.place(value) : scale.place(Math.min(Math.max(value, scale.low), scale.high)));
  if (Number.isFinite(ys[1])) make("line", { class: "whisker", x1: cx, x2: cx, y1: inside(ys[1], y), y2: inside(ys[2], y) }, group);
  if (Number.isFinite(xs[1]) && !x.meta.log) make("line", { class: "whisker", x1: inside(xs[1], x), x2: inside(xs[2], x), y1: cy, y2: cy }, group);
}

function mark(group, shape, cx, cy) {
  const r = RADIUS;
  if (shape === "circle") return make("circle", { class: "mark", cx, cy, r }, group);
  if (shape === "square") return make("rect", { class: "mark", x: cx - r, y: cy - r, width: 2 * r, height: 2 * r }, group);
  const corners = shape === "diamond" ? [[0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]] : [[0, -1.3], [1.2, 0.9], [-1.2, 0.9]];
  return make("polygon", { class: "mark", points: corners.map(([dx, dy]) => `${cx + dx * r},${cy + dy * r}`).join(" ") }, group);
}

// Lines join settings that differ in one knob only, as in the paper's Figure 3.
function paths(panel, asked, points, place) {
  if (!asked.along) return;
  const [method, knob] = asked.along.split(" ");
  const groups = new Map();
  for (const point of points.filter((p) => p.method === method)) {
    const rest = Object.entries(point.knobs).filter(([name]) => name !== knob);
    const key = JSON.stringify(rest);
    groups.set(key, [...(groups.get(key) ?? []), point]);
  }
  for (const group of groups.values()) {
    group.sort((a, b) => a.knobs[knob] - b.knobs[knob]);
    make("polyline", { class: `path ${group[0].kind}`, points: group.map((p) => place(p).join(",")).join(" ") }, panel);
  }
}

function words(point, asked) {
  const lines = [point.name];
  for (const [key, meta] of Object.entries(DATA.measures)) {
    const [mean, low, high] = point.v[key];
    const spread = Number.isFinite(low) && high > low ? ` ± ${text((high - low) / 2, meta)}` : "";
    lines.push(`${meta.short} ${text(mean, meta)}${spread}${meta.unit}`);
  }
  const front = point.front[asked.privacy] ? "beaten by no other" : "beaten by another";
  lines.push(`${front}; non-dominated in ${Math.round(100 * point.sure[asked.privacy])}% of resamples of the seeds`);
  if (point.failed) lines.push(`status ${point.failed}`);
  return lines.join("\n");
}

function tell(id, near) {
  const point = BY_ID.get(id), tip = $("#tip");
  for (const node of $$(".on")) node.classList.remove("on");
  if (!point) {
    tip.hidden = true;
    return;
  }
  for (const node of $$(`[data-id="${id}"]`)) node.classList.add("on");
  const [head, ...rest] = words(point, state()).split("\n");
  const title = document.createElement("b");
  title.textContent = head;
  tip.replaceChildren(title, ...rest.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const x = Math.min(near.x + 14, document.documentElement.clientWidth - box.width - 8);
  const y = near.y + 14 + box.height > window.innerHeight ? near.y - box.height - 10 : near.y + 14;
  tip.style.left = `${Math.max(8, x) + window.scrollX}px`;
  tip.style.top = `${Math.max(8, y) + window.scrollY}px`;
}

function update() {
  const asked = state();
  const points = DATA.points.filter((point) => shown(point, asked));
  // Settings first, so that retraining and doing nothing lie on top.
  points.sort((a, b) => a.fixed - b.fixed || a.front[asked.privacy] - b.front[asked.privacy]);
  for (const panel of $$("svg.panel")) draw(panel, asked, points);
  const ids = new Set(points.map((point) => point.id));
  for (const row of $$("tr[data-id]")) {
    row.hidden = !ids.has(row.dataset.id);
    row.classList.toggle("front", BY_ID.get(row.dataset.id).front[asked.privacy]);
    $(".sure", row).textContent = `${Math.round(100 * BY_ID.get(row.dataset.id).sure[asked.privacy])}%`;
  }
  const settings = points.filter((point) => !point.fixed);
  const best = settings.filter((point) => point.front[asked.privacy]).length;
  $("#count").textContent = `${settings.length} settings shown, ${best} of them beaten by no other`;
  tell(null);
}

document.addEventListener("pointerover", (event) => {
  const node = event.target.closest("[data-id]");
  tell(node?.dataset.id ?? null, { x: event.clientX, y: event.clientY });
});
document.addEventListener("focusin", (event) => {
  const node = event.target.closest("g.point");
  if (!node) return;
  const box = node.getBoundingClientRect();
  tell(node.dataset.id, { x: box.right, y: box.bottom });
});
document.addEventListener("keydown", (event) => event.key === "Escape" && tell(null));
for (const kind of ["input", "change"]) $("form").addEventListener(kind, update);
$("form").addEventListener("reset", () => setTimeout(update));
$("form").addEventListener("submit", (event) => event.preventDefault());
update();
