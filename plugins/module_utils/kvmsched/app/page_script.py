# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The style and the script of a replay's page. Only Python files travel with the package, so they are texts here."""

from __future__ import annotations

STYLE = """
:root { --back: #fbfaf7; --fore: #22262b; --soft: #656d76; --line: #dcdad2; --card: #ffffff; --accent: #1f5f8b;
  --used: #7aa5c4; --size: #d5e4ee; --bad: #c2371f; --good: #2c7a4b; --wait: #d98e2b; }
@media (prefers-color-scheme: dark) { :root { --back: #16191d; --fore: #e4e6e8; --soft: #99a2ac; --line: #333a42;
  --card: #1e2328; --accent: #79b8e6; --used: #3f7398; --size: #2a3a47; --bad: #ef7a66; --good: #6cc48d;
  --wait: #d9a153; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--fore); font: 15px/1.5 system-ui, sans-serif; }
header, main, footer { max-width: 1240px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -.01em; }
header p, footer p, .soft { color: var(--soft); }
header p { margin: 2px 0 12px; }
h2 { font-size: 18px; margin: 0 0 10px; }
h3 { font-size: 15px; margin: 14px 0 4px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 16px 18px;
  margin: 0 0 16px; }
ul { margin: 0; padding-left: 20px; }
li { margin: 2px 0; }
ul.notes { margin-top: 12px; color: var(--soft); font-size: 13.5px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 14px 4px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; }
thead th { color: var(--soft); font-weight: 600; }
td.words { text-align: left; white-space: normal; }
a { color: var(--accent); }
canvas, svg { display: block; width: 100%; touch-action: pan-y; }
.bar { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; margin-bottom: 10px; }
select, input { font: inherit; color: inherit; background: var(--back); border: 1px solid var(--line);
  border-radius: 6px; padding: 4px 8px; max-width: 100%; }
.legend { display: inline-flex; align-items: center; gap: 5px; font-size: 13px; color: var(--soft); }
.legend i { width: 14px; height: 10px; border-radius: 2px; display: inline-block; }
.guests { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); gap: 14px; }
.guest { border-top: 1px solid var(--line); padding-top: 6px; min-width: 0; }
.guest b { font-weight: 600; overflow-wrap: anywhere; }
.guest small { color: var(--soft); }
.guest .bad { color: var(--bad); }
.told { min-height: 3em; font-size: 14px; border-left: 3px solid var(--accent); padding-left: 10px; margin-top: 8px;
  overflow-wrap: anywhere; }
.axis { display: flex; justify-content: space-between; color: var(--soft); font-size: 12px; }
#tip { position: fixed; z-index: 9; pointer-events: none; background: var(--fore); color: var(--back); font-size: 13px;
  padding: 4px 8px; border-radius: 5px; max-width: min(420px, 90vw); display: none; }
[tabindex]:focus-visible, select:focus-visible, input:focus-visible, summary:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px; }
svg .mark { cursor: pointer; }
svg .mark:focus { outline: none; }
svg .mark:focus circle, svg .mark.on circle { stroke: var(--fore); stroke-width: 2.5; }
details table { font-size: 13px; }
details td, details th { white-space: normal; text-align: left; vertical-align: top; }
@media (max-width: 520px) { header, main, footer { padding-left: 10px; padding-right: 10px; }
  section { padding: 12px; } h1 { font-size: 21px; } }
@media print { :root { --back: #fff; --card: #fff; --fore: #000; --soft: #444; --line: #bbb; --used: #7aa5c4;
  --size: #d5e4ee; } section { break-inside: avoid-page; border: 0; padding: 8px 0; }
  #guests { break-inside: auto; } .guest, tr { break-inside: avoid; } select, input { border: 0; } #tip { display: none; } }
"""  # noqa: E501

SCRIPT = r"""
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.getElementById("pictures");
const span = Math.max(1e-6, data.end - data.begin);
const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const clock = s => { const d = new Date(s * 1000), two = n => String(n).padStart(2, "0");
  return (span > 86400 ? (d.getMonth() + 1) + "/" + d.getDate() + " " : "") + two(d.getHours()) + ":"
    + two(d.getMinutes()) + (span < 7200 ? ":" + two(d.getSeconds()) : ""); };
const at = (column, columns) => data.begin + (column + .5) / columns * span;
function make(name, parent, text, attributes) {
  const node = document.createElement(name);
  for (const key in attributes || {}) node.setAttribute(key, attributes[key]);
  if (text !== undefined && text !== null) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}
function section(id, title, about) {
  const node = make("section", root, null, {id});
  make("h2", node, title);
  if (about) make("p", node, about, {class: "soft"});
  return node;
}
function axis(parent) {
  const node = make("div", parent, null, {class: "axis", "aria-hidden": "true"});
  const parts = innerWidth < 500 ? 2 : 4;
  for (let n = 0; n <= parts; n++) make("span", node, clock(data.begin + span * n / parts));
}
function legend(parent, entries) {
  for (const [shade, text] of entries) {
    const one = make("span", parent, null, {class: "legend"});
    make("i", one).style.background = shade;
    one.append(text);
  }
}
const tip = make("div", document.body, null, {id: "tip", role: "status"});
function say(text, x, y) {
  if (!text) { tip.style.display = "none"; return; }
  tip.textContent = text;
  tip.style.display = "block";
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
  tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18) + "px";
}
/* A canvas that is drawn when it comes into view, and again when its width or the colours change. */
const drawn = new Map();
const seen = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
}, {rootMargin: "300px"});
function canvas(parent, height, label, paint) {
  const node = make("canvas", parent, null, {role: "img", "aria-label": label});
  node.style.height = height + "px";
  drawn.set(node, {paint, height, width: 0});
  seen.observe(node);
  return node;
}
function draw(node, force) {
  const one = drawn.get(node), width = node.clientWidth, ratio = window.devicePixelRatio || 1;
  if (!one || !width || (one.width === width && !force)) return;
  one.width = width;
  node.width = Math.round(width * ratio);
  node.height = Math.round(one.height * ratio);
  const pen = node.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, one.height);
  one.paint(pen, width, one.height);
}
const again = () => { for (const [node, one] of drawn) if (one.width) draw(node, true); };
let timer = 0;
addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(again, 120); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
addEventListener("beforeprint", () => { for (const node of drawn.keys()) draw(node, true); });

/* pCPUs */
function heat(value) {
  if (value === null || value === undefined) return null;
  const v = Math.min(100, Math.max(0, value)) / 100, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const hue = 46 - 38 * v;
  const light = dark ? 15 + 45 * v : 97 - 52 * v;
  return "hsl(" + hue.toFixed(0) + " " + (25 + 50 * v).toFixed(0) + "% " + light.toFixed(0) + "%)";
}
function heatmap(parent, result) {
  const pcpus = Object.keys(result.busy).map(Number).sort((a, b) => a - b);
  if (!pcpus.length) { make("p", parent, "No load is known.", {class: "soft"}); return; }
  const high = Math.max(4, Math.min(22, Math.floor(360 / pcpus.length)));
  const rows = pcpus.map(p => result.busy[p]);
  const columns = Math.max(1, ...rows.map(row => row.length));
  const node = canvas(parent, high * pcpus.length, "Load of " + pcpus.length + " pCPUs over time, " + result.name,
    (pen, width) => rows.forEach((row, y) => row.forEach((value, x) => {
      const shade = heat(value);
      if (!shade) return;
      pen.fillStyle = shade;
      const left = Math.floor(x * width / columns);
      pen.fillRect(left, y * high, Math.ceil((x + 1) * width / columns) - left, high - (high > 7 ? 1 : 0));
    })));
  node.addEventListener("pointermove", event => {
    const box = node.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / box.width * columns);
    const y = Math.floor((event.clientY - box.top) / high);
    const value = rows[y] && rows[y][x];
    say(value === undefined || value === null ? "" : "pCPU " + pcpus[y] + ", " + clock(at(x, columns)) + ": "
      + value + " % busy", event.clientX, event.clientY);
  });
  node.addEventListener("pointerleave", () => say(""));
  axis(parent);
}
/* Moves */
const NS = "http://www.w3.org/2000/svg";
function shape(name, parent, attributes) {
  const node = document.createElementNS(NS, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  parent.appendChild(node);
  return node;
}
function sentence(move) {
  return clock(move[0]) + "  " + move[3] + ": " + move[4] + " \u2192 " + move[5] + ".  " + move[6];
}
function timeline(parent, result) {
  const moves = result.moves;
  if (!moves.length) { make("p", parent, "No move.", {class: "soft"}); return; }
  const bar = make("div", parent, null, {class: "bar"});
  legend(bar, [["var(--good)", "memory given"], ["var(--bad)", "memory taken"], ["var(--accent)", "pin"]]);
  make("span", bar, "Tab, then the arrow keys, go from move to move.", {class: "legend"});
  const lanes = {balloon: 0, pin: 1}, high = 92;
  const picture = shape("svg", parent, {viewBox: "0 0 1000 " + high, preserveAspectRatio: "none",
    height: high, role: "group", "aria-label": moves.length + " moves over time, " + result.name});
  for (const y of [26, 66]) shape("line", picture, {x1: 0, x2: 1000, y1: y, y2: y, stroke: "var(--line)",
    "vector-effect": "non-scaling-stroke"});
  axis(parent);
  const told = make("div", parent, sentence(moves[0]), {class: "told", "aria-live": "polite"});
  const marks = moves.map((move, index) => {
    const shade = move[2] === "pin" ? "accent" : move[7] ? "good" : "bad";
    const group = shape("g", picture, {class: "mark", tabindex: index ? -1 : 0, role: "img",
      "aria-label": sentence(move)});
    const x = 6 + 988 * (move[0] - data.begin) / span, y = (lanes[move[2]] ? 66 : 26) + (index % 3 - 1) * 9;
    shape("circle", group, {cx: 0, cy: 0, r: 5, fill: "var(--" + shade + ")", "vector-effect": "non-scaling-stroke"});
    group.dataset.x = x;
    group.dataset.y = y;
    return group;
  });
  /* The picture is stretched to the page, its marks are not. */
  const place = () => { const width = picture.clientWidth || 1000;
    for (const group of marks) group.setAttribute("transform", "translate(" + group.dataset.x + " " + group.dataset.y
      + ") scale(" + (1000 / width).toFixed(4) + " 1)"); };
  place();
  new ResizeObserver(place).observe(picture);
  let current = 0;
  function show(index, focus) {
    marks[current].setAttribute("tabindex", -1);
    marks[current].classList.remove("on");
    current = Math.min(marks.length - 1, Math.max(0, index));
    marks[current].setAttribute("tabindex", 0);
    marks[current].classList.add("on");
    told.textContent = sentence(moves[current]);
    if (focus) marks[current].focus();
  }
  picture.addEventListener("focusin", event => {
    const index = marks.indexOf(event.target.closest(".mark"));
    if (index >= 0) show(index, false);
  });
  picture.addEventListener("pointerover", event => {
    const mark = event.target.closest(".mark");
    if (!mark) return;
    const index = marks.indexOf(mark);
    show(index, false);
    say(sentence(moves[index]), event.clientX, event.clientY);
  });
  picture.addEventListener("pointerleave", () => say(""));
  picture.addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -1e9, End: 1e9}[event.key];
    if (!step) return;
    event.preventDefault();
    show(current + step, true);
  });
  if (result.more) make("p", parent, "and " + result.more + " more moves", {class: "soft"});
  const details = make("details", parent);
  make("summary", details, "All moves with their reasons, as text");
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const table = make("table", make("div", details, null, {class: "wide"}));
    for (const move of moves) {
      const row = make("tr", table);
      make("td", row, clock(move[0]));
      make("td", row, move[3] + ": " + move[4] + " \u2192 " + move[5]);
      make("td", row, move[6]);
    }
  });
}
/* Guests */
function steps(pen, row, columns, width, y) {
  row.forEach((value, x) => {
    if (value === null) return;
    pen.lineTo(x * width / columns, y(value));
    pen.lineTo((x + 1) * width / columns, y(value));
  });
}
function guestPicture(parent, guest, moves) {
  const columns = Math.max(1, guest.size.length, guest.ran.length);
  const known = guest.size.some(v => v !== null);
  const top = Math.max(1, guest.max, ...guest.size.filter(v => v !== null));
  const room = known ? 92 : 0, gap = known ? 8 : 0, cpu = 34;
  const most = Math.max(100, ...guest.ran.map((v, n) => (v || 0) + (guest.waited[n] || 0)));
  const node = canvas(parent, room + gap + cpu, guest.name + ": memory and CPU over time", (pen, width) => {
    if (known) memory(pen, width);
    const y = value => room + gap + cpu - value / most * cpu;
    const bars = (row, base, shade) => { pen.fillStyle = shade; row.forEach((value, x) => {
      if (!value) return;
      const low = base ? base[x] || 0 : 0;
      pen.fillRect(x * width / columns, y(low + value), width / columns + .5, y(low) - y(low + value)); }); };
    bars(guest.ran, null, colour("used"));
    bars(guest.waited, guest.ran, colour("wait"));
    pen.fillStyle = colour("line");
    pen.fillRect(0, room + gap + cpu - 1, width, 1);
  });
  function memory(pen, width) {
    const y = value => room - value / top * (room - 10);
    const used = guest.size.map((size, n) => size === null || guest.usable[n] === null || guest.usable[n] === undefined
      ? null : Math.max(0, size - guest.usable[n]));
    const area = (row, shade) => { pen.fillStyle = shade; pen.beginPath(); pen.moveTo(0, room);
      steps(pen, row, columns, width, y); pen.lineTo(width, room); pen.closePath(); pen.fill(); };
    area(guest.size, colour("size"));
    area(used, colour("used"));
    pen.fillStyle = colour("bad");
    used.forEach((value, x) => { if (value !== null && guest.size[x] - value < guest.starvation)
      pen.fillRect(x * width / columns, room - 4, width / columns + .5, 4); });
    const rule = (row, shade, dash) => { pen.strokeStyle = shade; pen.lineWidth = 1.2; pen.setLineDash(dash);
      pen.beginPath(); steps(pen, row, columns, width, y); pen.stroke(); pen.setLineDash([]); };
    rule(used.map(value => value === null ? null : Math.min(top, value + guest.starvation)), colour("bad"), [3, 3]);
    rule(guest.size, colour("accent"), []);
    if (guest.floor) rule(guest.size.map(() => guest.floor), colour("soft"), [1, 4]);
    for (const move of moves) {
      const x = (move[0] - data.begin) / span * width, up = move[7];
      pen.fillStyle = colour(up ? "good" : "bad");
      pen.beginPath();
      pen.moveTo(x, up ? 0 : 8); pen.lineTo(x - 4, up ? 8 : 0); pen.lineTo(x + 4, up ? 8 : 0);
      pen.fill();
    }
  }
  node.addEventListener("pointermove", event => {
    const box = node.getBoundingClientRect();
    const x = Math.min(columns - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * columns)));
    const parts = [clock(at(x, columns))];
    if (guest.size[x] !== null && guest.size[x] !== undefined) parts.push("has " + guest.size[x] + "M, usable "
      + guest.usable[x] + "M, starves below " + guest.starvation + "M");
    if (guest.ran[x] !== null && guest.ran[x] !== undefined)
      parts.push("runs " + guest.ran[x] + " %, waits " + guest.waited[x] + " %");
    say(parts.join(": ").replace(": runs", "; runs"), event.clientX, event.clientY);
  });
  node.addEventListener("pointerleave", () => say(""));
}
/* The page */
function chooser(parent, what, change, start) {
  const bar = make("div", parent, null, {class: "bar"});
  const label = make("label", bar, what + " ");
  const select = make("select", label);
  data.results.forEach((result, index) => make("option", select, result.name, {value: index}));
  const inside = make("div", parent);
  const show = () => { for (const old of inside.querySelectorAll("canvas")) { seen.unobserve(old); drawn.delete(old); }
    inside.replaceChildren(); change(inside, data.results[select.value]); };
  select.value = Math.min(start, data.results.length - 1);
  select.addEventListener("change", show);
  show();
  return bar;
}
const last = data.results.length - 1;
const loads = section("loads", "Load of the pCPUs over time");
const scale = make("div", loads, null, {class: "bar"});
legend(scale, [[heat(5), "idle"], [heat(50), "half busy"], [heat(100), "full"]]);
if (last > 0) {
  make("h3", loads, data.results[0].name);
  heatmap(loads, data.results[0]);
  make("h3", loads, "beside it");
}
chooser(loads, "shown:", heatmap, last);
const mostly = data.recorded && data.results[0].moves.length ? 0 : last;
chooser(section("moves", "Every move, and why"), "moves of", timeline, mostly);
const guests = section("guests", "Guests: who gave, who got");
const ways = make("div", guests, null, {class: "bar"});
legend(ways, [["var(--size)", "what it has"], ["var(--used)", "what it uses; CPU that it runs"],
  ["var(--wait)", "CPU that it waits for"], ["var(--bad)", "starves below the dashed line"]]);
const search = make("input", make("label", ways, "only "), null, {type: "search", placeholder: "part of a name"});
chooser(guests, "as of", (inside, result) => {
  const grid = make("div", inside, null, {class: "guests"});
  const order = [...result.guests].sort((a, b) => b.starved - a.starved || (a.name < b.name ? -1 : 1));
  for (const guest of order) {
    const card = make("div", grid, null, {class: "guest"});
    card.dataset.name = guest.name.toLowerCase();
    make("b", card, guest.name);
    card.append(" ");
    make("small", card, guest.max ? "at most " + guest.max + "M" : "");
    if (guest.starved) make("small", card, ", starved " + guest.starved + " s", {class: "bad"});
    const kills = guest.kills > 1 ? guest.kills + " times" : "once";
    if (guest.kills) make("small", card, ", likely killed " + kills, {class: "bad"});
    guestPicture(card, guest, result.moves.filter(move => move[1] === guest.name && move[2] === "balloon"));
  }
  filter();
}, last);
function filter() {
  const wanted = search.value.toLowerCase();
  for (const card of guests.querySelectorAll(".guest")) card.hidden = !card.dataset.name.includes(wanted);
}
search.addEventListener("input", filter);
})();
"""
