"use strict";
// Texts of the repository and of the model are shown through text nodes only: nothing here reads them as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = new Map(data.nodes.map((node) => [node.id, node]));
for (const node of data.nodes) node.children = [];
for (const node of data.nodes) if (node.parent !== null) byId.get(node.parent).children.push(node.id);
const candidateOf = new Map(data.candidates.map((candidate) => [candidate.node, candidate]));
const $ = (id) => document.getElementById(id);
const svg = $("tree");
const LETTER = { create: "c", append: "a", edit: "e", insert: "i", submit: "s" };
const COLUMN = 23, MARGIN = 26, LABEL = 130;
const KEYS = [
  ["← →", "parent, first child"], ["↑ ↓", "the next path above, below"], ["[ ]", "previous, next sibling"],
  ["n p", "next, previous in the order of the search"], ["d", "next decision that was expanded"], ["b", "end of the best path"],
  ["c", "compare with a sibling"], ["/", "search; Enter and Shift+Enter go through the hits"], ["+ − f", "larger, smaller, fit"],
  ["1 2 3", "tabs"], ["Esc", "leave the search, close this"],
];

function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}
function shape(tag, attributes, ...children) {
  return fill(document.createElementNS(svg.namespaceURI, tag), attributes, children);
}
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// --- layout -----------------------------------------------------------------------------------------------------------
// Every leaf has a row of its own; a first child stays in the row of its parent, so that a path is a straight line until
// the search goes back.

const root = d3.stratify().id((node) => node.id).parentId((node) => node.parent)(data.nodes);
d3.cluster().nodeSize([1, 1]).separation(() => 1)(root);
root.eachAfter((at) => { if (at.children) at.x = at.children[0].x; });
const rows = root.leaves().map((leaf) => leaf.x);
const highest = Math.min(...rows), width = root.height * COLUMN + 2 * MARGIN + LABEL;
const fitting = () => Math.max(0.6, Math.min(1.2, ($("stage").clientWidth - 4) / width));
const ROW = Math.max(28, Math.min(44, ($("stage").clientHeight / fitting() - 2 * MARGIN) / rows.length));
const height = (Math.max(...rows) - highest) * ROW + 2 * MARGIN;
const place = new Map();
root.each((at) => place.set(at.data.id, { x: MARGIN + at.depth * COLUMN, y: MARGIN + (at.x - highest) * ROW }));
const best = new Set();
for (let id = data.best; id !== null; id = byId.get(id).parent) best.add(id);
const decides = (node) => node.children.length > 1 || node.flags.includes("exhausted");
const kindOf = (node) => (node.parent === null ? "root" : node.kind || "other");

function glyph(node) {
  const parts = [], kind = kindOf(node), letter = LETTER[kind];
  if (decides(node)) {
    const ring = letter ? 12.5 : 9;
    const dead = node.children.length < 2;
    parts.push(shape("path", { class: dead ? "ring dead" : "ring", d: `M0 ${-ring}L${ring} 0L0 ${ring}L${-ring} 0Z` }));
  }
  if (kind === "root") parts.push(shape("rect", { class: "dot", x: -5, y: -5, width: 10, height: 10, rx: 2 }));
  else if (kind === "submit") parts.push(shape("rect", { class: "dot", x: -7.5, y: -7.5, width: 15, height: 15, rx: 4 }));
  else parts.push(shape("circle", { class: "dot", r: letter ? 7.5 : 4.5 }));
  if (letter) parts.push(shape("text", { y: 0.5 }, letter));
  if (!node.children.length && node.exit !== "submit" && node.parent !== null) {
    parts.push(shape("path", { class: "cross", d: "M9 -4.5L18 4.5M18 -4.5L9 4.5" }));
  }
  return parts;
}

function label(node) {
  if (node.children.length) return null;
  const text = shape("text", { class: "label", x: node.exit === "submit" ? 14 : 23, y: 0.5 });
  if (node.id === data.best) text.append(shape("tspan", { class: "star" }, "★ "));
  text.append(node.exit || (node.parent === null ? "" : "unfinished"));
  if (node.size) {
    text.append(shape("tspan", { class: "plus" }, ` +${node.size[0]}`), shape("tspan", { class: "minus" }, ` −${node.size[1]}`));
  }
  const candidate = candidateOf.get(node.id);
  if (candidate && candidate.multiplicity > 1) text.append(` ×${candidate.multiplicity}`);
  return text;
}

function headline(node) {
  if (node.parent === null) return "the issue";
  const about = node.file || node.args.command || node.args.query || node.args.symbol || node.args.pattern || node.args.summary || "";
  return `${node.tool} ${String(about).split("\n")[0].slice(0, 80)}`.trim();
}

function draw() {
  const links = shape("g", {}), nodes = shape("g", {});
  for (const node of data.nodes) {
    const at = place.get(node.id);
    if (node.parent !== null) {
      const from = place.get(node.parent);
      const bend = Math.min(10, COLUMN / 2);
      const d = from.y === at.y ? `M${from.x} ${from.y}H${at.x}`
        : `M${from.x} ${from.y}V${at.y - bend}Q${from.x} ${at.y} ${from.x + bend} ${at.y}H${at.x}`;
      const line = shape("path", { class: best.has(node.id) ? "link best" : "link", d });
      if (best.has(node.id)) links.append(line); else links.prepend(line);
    }
    nodes.append(shape("g", {
      class: `node kind-${kindOf(node)}`, "data-id": node.id, id: `node-${node.id}`, transform: `translate(${at.x} ${at.y})`,
      role: "treeitem", "aria-level": node.depth + 1, "aria-label": `node ${node.id}: ${headline(node)}`,
    }, shape("title", {}, `#${node.id}  ${headline(node)}${node.exit ? "  → " + node.exit : ""}`),
      shape("circle", { class: "halo", r: 14 }), glyph(node), label(node)));
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("data-node-count", data.nodes.length);
  svg.append(links, nodes);
  svg.addEventListener("click", (event) => {
    const found = event.target.closest(".node");
    if (!found) return;
    const id = Number(found.dataset.id);
    if ((event.shiftKey || event.ctrlKey || event.metaKey) && id !== selected) compareWith(id); else select(id);
  });
}

let scale = 1;
function zoom(to) {
  scale = Math.max(0.3, Math.min(2.5, to));
  svg.setAttribute("width", width * scale);
  svg.setAttribute("height", height * scale);
}
function fit() {
  zoom(fitting());
}

// --- the side panel ---------------------------------------------------------------------------------------------------

let selected = 0, compared = null, tab = "node";

function select(id, keepTab) {
  if (!byId.has(id)) return;
  selected = id;
  if (!keepTab && tab !== "compare") tab = "node";
  if (tab === "compare" && !siblingsOf(id).length) tab = "node";
  if (tab === "compare" && !siblingsOf(id).includes(compared)) compared = siblingsOf(id)[0];
  show();
}
const siblingsOf = (id) => {
  const parent = byId.get(id).parent;
  return parent === null ? [] : byId.get(parent).children.filter((other) => other !== id);
};
function compareWith(id) {
  compared = id;
  tab = "compare";
  show();
}

function show() {
  for (const one of svg.querySelectorAll(".selected, .other-selected")) one.classList.remove("selected", "other-selected");
  const group = $(`node-${selected}`);
  group.classList.add("selected");
  svg.setAttribute("aria-activedescendant", group.id);
  if (tab === "compare" && compared !== null) $(`node-${compared}`).classList.add("other-selected");
  for (const row of document.querySelectorAll("#candidates tr")) row.classList.toggle("selected", Number(row.dataset.id) === selected);
  reveal(selected);
  const tabs = [["node", `Node ${selected}`, true], ["compare", "Compare", siblingsOf(selected).length > 0 || compared !== null]];
  tabs.push(["run", data.review ? "Issue and review" : "Issue", true]);
  $("tabs").replaceChildren(...tabs.map(([name, title, enabled]) => el("button", {
    role: "tab", "aria-selected": String(tab === name), disabled: enabled ? null : "",
    onclick: () => { tab = name; if (name === "compare" && (compared === null || compared === selected)) compared = siblingsOf(selected)[0]; show(); },
  }, title)));
  const content = $("content");
  content.replaceChildren(...(tab === "node" ? nodeView(byId.get(selected)) : tab === "compare" ? compareView() : runView()).flat(Infinity));
  content.scrollTop = 0;
  history.replaceState(null, "", tab === "compare" ? `#n${selected}-${compared}` : `#n${selected}`);
}

function reveal(id) {
  const stage = $("stage"), at = place.get(id), x = at.x * scale, y = at.y * scale, gap = 60;
  if (x < stage.scrollLeft + gap) stage.scrollLeft = x - gap;
  if (x > stage.scrollLeft + stage.clientWidth - gap) stage.scrollLeft = x - stage.clientWidth + gap;
  if (y < stage.scrollTop + gap) stage.scrollTop = y - gap;
  if (y > stage.scrollTop + stage.clientHeight - gap) stage.scrollTop = y - stage.clientHeight + gap;
}

const section = (title, aside, ...body) => [el("h3", {}, title, aside ? el("span", { class: "aside" }, aside) : null), ...body];
const badge = (text, kind) => el("span", { class: `badge ${kind || ""}` }, text);
const jump = (id, text) => el("button", { class: "jump", onclick: () => select(id) }, text || `#${id}`);
const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many || one + "s"}`;
const money = (value) => (value === null ? "cost unknown" : `$${value >= 1 || value === 0 ? value.toFixed(2) : value.toFixed(4)}`);
const score = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));
const folded = (title, chosen, ...body) => el("details", { class: chosen ? "chosen" : null }, el("summary", {}, title), el("div", {}, ...body));
const lineCount = (text) => count(text.split("\n").length, "line");

function nodeView(node) {
  const parts = [], kind = kindOf(node), siblings = siblingsOf(node.id);
  const line = data.nodes.map((other) => other.id), here = line.indexOf(node.id);
  parts.push(el("h2", {},
    el("span", { class: `badge kind kind-${kind}` }, kind), node.tool === kind ? null : node.tool || "the issue",
    node.exit && node.exit !== "submit" ? badge(node.exit, "bad") : null,
    node.id === data.best ? badge("★ best", "best") : null,
    node.flags.map((flag) => badge(flag.replace(/_/g, " "), "bad")),
    el("span", { class: "steps" },
      el("button", { title: "Previous in the order of the search (p)", onclick: () => select(line[here - 1]), disabled: here ? null : "" }, "‹"),
      el("button", { title: "Next in the order of the search (n)", onclick: () => select(line[here + 1]), disabled: here + 1 < line.length ? null : "" }, "›"))));
  parts.push(el("div", { class: "where" }, `depth ${node.depth}`,
    node.parent === null ? "" : " · after ", node.parent === null ? null : jump(node.parent),
    siblings.length ? [" · instead of ", siblings.map((id) => jump(id)), el("button", { class: "jump", onclick: () => compareWith(siblings[0]) }, "compare")] : null,
    node.children.length > 1 ? [" · expanded into ", node.children.map((id) => jump(id))] : null));
  if (node.parent === null) {
    parts.push(...section("Issue", "", el("div", { class: "prose" }, data.issue || "This tree does not hold the text of its issue.")));
  } else {
    if (node.thinking) parts.push(...section("Thinking", "", folded(lineCount(node.thinking), false, el("div", { class: "prose" }, node.thinking))));
    if (node.thought) parts.push(...section("Thought", "", el("div", { class: "prose" }, node.thought)));
    parts.push(...section("Action", node.file, actionView(node)));
    parts.push(...section("Observation", node.observation ? lineCount(node.observation) : "",
      node.observation ? el("pre", {}, node.observation) : el("div", { class: "empty" }, "no output")));
  }
  if (node.expansion) parts.push(...expansionView(node.expansion));
  if (node.rejected.length) parts.push(...section("No other action found", `${node.rejected.length} rejected`, ...rejectedView(node.rejected)));
  const candidate = candidateOf.get(node.id);
  if (candidate) parts.push(...candidateView(candidate));
  if (node.patch && !(candidate && candidate.patch === node.patch)) {
    parts.push(...section(candidate ? "Patch before cleaning" : "Patch", "", patchView(node.patch)));
  }
  parts.push(...section("Spent", "", facts([
    ["cost", money(node.cost)], ["time", `${node.wall.toFixed(2)} s`],
    ...Object.entries(node.usage).filter(([, value]) => value).map(([name, value]) => [name.replace(/_/g, " "), value.toLocaleString("en")]),
  ])));
  parts.push(...section("State", "", facts([
    ["replaced above", node.history.join(", ")], ["expansions left", Object.entries(node.remaining).map(([name, left]) => `${name} ${left}`).join(", ")],
    ["snapshot", node.snapshot, true], ["state hash", node.hash, true],
  ])));
  return parts;
}

function facts(rows) {
  return el("dl", {}, rows.filter(([, value]) => value !== "").map(([name, value, mono]) => [el("dt", {}, name), el("dd", { class: mono ? "mono" : null }, String(value))]));
}

function actionView(action) {
  const parts = [];
  const { old, new: fresh, ...rest } = action.args;
  const replaces = typeof old === "string" && typeof fresh === "string";
  for (const [name, value] of Object.entries(replaces ? rest : action.args)) {
    const text = typeof value === "string" ? value : JSON.stringify(value, null, 1);
    if (name === "path" && text === action.file) continue;
    const adds = name === "content" && ["create", "append", "insert"].includes(action.kind || action.tool);
    if (Object.keys(action.args).length > 1) parts.push(el("div", { class: "where" }, name));
    parts.push(adds ? diffView(text.split("\n").map((one) => ["+", one])) : el("pre", {}, text));
  }
  if (replaces) parts.push(diffView(difference(old.split("\n"), fresh.split("\n"))));
  return parts.length ? parts : [el("div", { class: "empty" }, "no arguments")];
}

function expansionView(expansion) {
  const critic = expansion.critic || {}, rejected = expansion.rejected || [];
  const parts = (expansion.candidates || []).map((candidate, i) => folded(
    `${i}  ${candidate.tool}${i === critic.index ? "  — chosen" : ""}`, i === critic.index,
    candidate.text ? el("div", { class: "prose" }, candidate.text) : null, actionView({ ...candidate, args: candidate.args || {} })));
  const shown = section("Drawn as an alternative", `${count((expansion.candidates || []).length, "candidate")}, ${rejected.length} rejected`, ...parts, ...rejectedView(rejected));
  if (critic.fallback) shown.push(badge("no index could be read: the first was taken", "bad"));
  if (critic.reply) shown.push(folded("Critic's answer", false, el("div", { class: "prose" }, critic.reply)));
  if (expansion.feedback) shown.push(folded(`Feedback shown before, ${lineCount(expansion.feedback)}`, false, el("pre", {}, expansion.feedback)));
  return shown;
}

function rejectedView(entries) {
  return entries.map((entry) => folded(`rejected: ${entry.reason || ""}  ${entry.tool || ""}`, false, el("pre", {}, JSON.stringify(entry, null, 1))));
}

function candidateView(candidate) {
  const scores = Object.entries(candidate.scores);
  const rows = [["rank", candidate.rank === null ? "" : candidate.rank + 1], ["score of the review", candidate.score === null ? "" : score(candidate.score)],
    ...scores.map(([name, value]) => [name, score(value)]), ["paths that end in it", candidate.multiplicity],
    ["left out", candidate.dropped.map(([path, why]) => `${path} (${why})`).join(", ")], ["submitted", candidate.auto ? "no, taken at the end of the path" : ""]];
  return [...section("Candidate", "", facts(rows)), ...section("Patch", candidate.dropped.length ? "cleaned" : "", patchView(candidate.patch))];
}

function patchView(patch) {
  const lines = patch.replace(/\n$/, "").split("\n");
  return diffView(lines.map((line) => [/^(diff |index |--- |\+\+\+ |new file|deleted file|rename |similarity )/.test(line) ? "f" : line.startsWith("@@") ? "@" : line[0] || " ", line]), true);
}

const MARK = { "+": "add", "-": "del", "@": "hunk", f: "file" };
function diffView(lines, whole) {
  return el("div", { class: "diff" }, lines.map(([mark, text]) => el("div", { class: MARK[mark] || null }, whole ? text || " " : `${mark} ${text}`)));
}

// --- comparing --------------------------------------------------------------------------------------------------------

// Longest common subsequence of lines; beyond its table's limit what differs counts as replaced as a whole.
function difference(one, other) {
  let start = 0, end = 0;
  while (start < one.length && start < other.length && one[start] === other[start]) start++;
  while (end < one.length - start && end < other.length - start && one[one.length - 1 - end] === other[other.length - 1 - end]) end++;
  const a = one.slice(start, one.length - end), b = other.slice(start, other.length - end), out = [];
  for (const line of one.slice(0, start)) out.push([" ", line]);
  const wide = b.length + 1;
  if (a.length * b.length > 9e6) {
    out.push(...a.map((line) => ["-", line]), ...b.map((line) => ["+", line]));
  } else {
    const length = new Uint32Array((a.length + 1) * wide);
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        length[i * wide + j] = a[i] === b[j] ? length[(i + 1) * wide + j + 1] + 1 : Math.max(length[(i + 1) * wide + j], length[i * wide + j + 1]);
      }
    }
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) { out.push([" ", a[i]]); i++; j++; }
      else if (i < a.length && (j === b.length || length[(i + 1) * wide + j] >= length[i * wide + j + 1])) out.push(["-", a[i++]]);
      else out.push(["+", b[j++]]);
    }
  }
  for (const line of one.slice(one.length - end)) out.push([" ", line]);
  return out;
}

function pairView(left, right, leftTitle, rightTitle) {
  const rows = [];
  let removed = [], added = [];
  const flush = () => {
    for (let i = 0; i < Math.max(removed.length, added.length); i++) {
      rows.push(el("tr", {}, el("td", { class: i < removed.length ? "one" : null }, i < removed.length ? removed[i] : ""), el("td", { class: i < added.length ? "two" : null }, i < added.length ? added[i] : "")));
    }
    removed = []; added = [];
  };
  for (const [mark, line] of difference(left.split("\n"), right.split("\n"))) {
    if (mark === "-") removed.push(line);
    else if (mark === "+") added.push(line);
    else { flush(); rows.push(el("tr", {}, el("td", {}, line), el("td", {}, line))); }
  }
  flush();
  return el("table", { class: "pair" }, el("thead", {}, el("tr", {}, el("th", {}, leftTitle), el("th", {}, rightTitle))), el("tbody", {}, rows));
}

function actionText(node) {
  const lines = [node.tool];
  for (const [name, value] of Object.entries(node.args)) {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    if (text.includes("\n")) lines.push(`${name}:`, ...text.split("\n").map((line) => `  ${line}`)); else lines.push(`${name}: ${text}`);
  }
  return lines.join("\n");
}

function firstEnd(node) {
  let at = node;
  while (at.children.length) at = byId.get(at.children[0]);
  return at;
}

function compareView() {
  const shown = [selected, compared].sort((a, b) => a - b);  // the earlier attempt on the left
  const [one, other] = shown.map((id) => byId.get(id)), ends = [firstEnd(one), firstEnd(other)];
  const choices = siblingsOf(selected);
  const patchOf = (end) => (candidateOf.get(end.id) || end).patch.split("\n").filter((line) => !line.startsWith("index ")).join("\n");
  const parts = [el("h2", {}, "Node ", jump(one.id), " and node ", jump(other.id)),
    el("div", { class: "where" }, one.parent === other.parent ? ["both after ", jump(one.parent)] : "of different parents",
      choices.length > 1 ? [" · against ", choices.map((id) => el("button", { class: "jump", onclick: () => compareWith(id) }, `#${id}`))] : null)];
  parts.push(...section("Actions", "", pairView(actionText(one), actionText(other), `#${one.id} ${kindOf(one)}`, `#${other.id} ${kindOf(other)}`)));
  if (one.thought || other.thought) parts.push(...section("Thoughts", "", el("table", { class: "pair prose-pair" }, el("tbody", {}, el("tr", {}, el("td", {}, one.thought), el("td", {}, other.thought))))));
  parts.push(...section("Where they lead", "along first children", facts(ends.map((end, i) => [`#${[one, other][i].id}`,
    `${end.depth - one.depth} further actions, #${end.id} ${end.exit || "unfinished"}${end.size ? ` +${end.size[0]} −${end.size[1]}` : ""}`]))));
  const patches = ends.map(patchOf);
  parts.push(...section("Patches there", patches[0] === patches[1] ? "the same" : "",
    patches[0] || patches[1] ? pairView(patches[0], patches[1], `#${ends[0].id}`, `#${ends[1].id}`) : el("div", { class: "empty" }, "neither path has a patch")));
  return parts;
}

function runView() {
  const parts = [...section("Issue", "", el("div", { class: "prose" }, data.issue || "This tree does not hold the text of its issue."))];
  const policy = data.policy;
  if (policy) {
    parts.push(...section("Which decisions are expanded", "", facts([
      ["limits on a path", Object.entries(policy.limits).map(([kind, limit]) => `${kind} ${limit}`).join(", ")],
      ...Object.entries(policy.allowed_after).map(([kind, after]) => [`below another ${kind}`, after.join(", ") || "nothing"]), ["children", policy.num_expansions]])));
  }
  if (data.review) {
    for (const found of matrices(data.review.evidence)) parts.push(...section("Scripts against candidates", "the candidates that pass them", matrixView(found)));
    const text = JSON.stringify(data.review.evidence, null, 2).replace(/\[[\s\d.,-]*\]/g, (list) => list.replace(/\s+/g, " "));
    parts.push(...section("Review", "", folded("All evidence", false, el("pre", {}, text))));
  }
  return parts;
}

// Wherever the evidence of a review holds the matrix of an execution reviewer.
function matrices(value) {
  if (value === null || typeof value !== "object") return [];
  const own = Array.isArray(value.matrix) && Array.isArray(value.scripts) && Array.isArray(value.candidates) ? [value] : [];
  return [...own, ...Object.values(value).flatMap(matrices)];
}

function matrixView({ matrix, scripts, candidates }) {
  const kept = scripts.filter((script) => script.kept !== false);
  const head = el("tr", {}, el("th", {}, "script"), el("th", {}, "of"), el("th", { class: "number" }, "weight"), candidates.map((candidate) => el("th", { class: "number" }, jump(candidate.node))));
  const rows = matrix.map((row, i) => el("tr", {}, el("td", {}, kept[i]?.path || ""), el("td", {}, kept[i] ? jump(kept[i].node) : ""), el("td", { class: "number" }, kept[i] ? score(kept[i].weight) : ""),
    row.map((passes) => el("td", { class: passes ? "number plus" : "number minus" }, passes ? "✓" : "✗"))));
  const broken = candidates.some((candidate) => candidate.broken) ? [el("tr", {}, el("td", { colspan: 3 }, "visible tests broken"), candidates.map((candidate) => el("td", { class: "number", title: (candidate.broken || []).join("\n") }, String((candidate.broken || []).length))))] : [];
  return el("table", { class: "matrix" }, el("thead", {}, head), el("tbody", {}, rows, broken));
}

// --- header, legend, candidates ---------------------------------------------------------------------------------------

function total(number, word) {
  return el("span", {}, el("b", {}, typeof number === "number" ? number.toLocaleString("en") : number), ` ${word}`);
}

function furniture() {
  const sums = data.totals, usage = sums.usage;
  $("title").textContent = data.title;
  $("title").title = data.title;
  const plural = (number, one, many) => total(number, number === 1 ? one : many);
  const tokens = usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h;
  const items = [plural(sums.steps, "step", "steps"), plural(sums.leaves, "leaf", "leaves"), plural(sums.expansions, "expansion", "expansions")];
  if (data.candidates.length) items.push(plural(data.candidates.length, "candidate", "candidates"));
  items.push(sums.cost_usd === null ? total("cost", "unknown") : total(money(sums.cost_usd), ""));
  if (tokens) items.push(total(tokens, "tokens in"), total(usage.output, "out"), total(`${Math.round(100 * usage.cache_read / tokens)} %`, "from the cache"));
  $("totals").append(...items);

  const seen = new Set(data.nodes.map(kindOf));
  const icon = (node) => shape("svg", { viewBox: "-14 -14 28 28", class: `node kind-${kindOf(node)}` }, glyph(node));
  const sample = (kind) => ({ parent: 0, kind, flags: [], children: [0], exit: "submit" });
  const entries = ["other", "create", "append", "insert", "edit", "submit"].filter((kind) => seen.has(kind)).map((kind) => el("span", {}, icon(sample(kind)), kind));
  if (data.nodes.some(decides)) entries.push(el("span", {}, icon({ ...sample("other"), children: [0, 0] }), "expanded decision"));
  if (data.nodes.some((node) => node.flags.includes("exhausted"))) entries.push(el("span", {}, icon({ ...sample("other"), flags: ["exhausted"] }), "no other action found"));
  if (data.nodes.some((node) => node.parent !== null && !node.children.length && node.exit !== "submit")) {
    entries.push(el("span", {}, shape("svg", { viewBox: "4 -10 19 20", class: "node" }, shape("path", { class: "cross", d: "M9 -4.5L18 4.5M18 -4.5L9 4.5" })), "ended without a submission"));
  }
  if (data.best !== null) entries.push(el("span", {}, shape("svg", { viewBox: "0 0 20 20" }, shape("path", { class: "link best", d: "M0 10H20" })), "best path"));
  $("legend").append(...entries);

  if (data.candidates.length) {
    const scored = data.candidates.some((candidate) => candidate.score !== null);
    const names = [...new Set(data.candidates.flatMap((candidate) => Object.keys(candidate.scores)))];
    const heads = ["", "node", ...(scored ? ["score"] : []), ...names, "paths", "lines", "files", ""];
    const right = new Set(["score", "paths", "lines", ...names]);
    const cell = (text) => el("td", { class: "number" }, text);
    const order = [...data.candidates].sort((a, b) => (a.rank ?? 0) - (b.rank ?? 0));
    $("candidates").append(el("table", {}, el("thead", {}, el("tr", {}, heads.map((head) => el("th", { class: right.has(head) ? "number" : null }, head)))),
      el("tbody", {}, order.map((candidate) => el("tr", { "data-id": candidate.node, onclick: () => { tab = "node"; select(candidate.node); } },
        el("td", {}, candidate.node === data.best ? badge("★ best", "best") : candidate.rank === null ? "" : `${candidate.rank + 1}.`),
        el("td", {}, `#${candidate.node}`), scored ? cell(candidate.score === null ? "" : score(candidate.score)) : null,
        names.map((name) => cell(name in candidate.scores ? score(candidate.scores[name]) : "")), cell(`×${candidate.multiplicity}`),
        el("td", { class: "number" }, candidate.size ? [el("span", { class: "plus" }, `+${candidate.size[0]}`), " ", el("span", { class: "minus" }, `−${candidate.size[1]}`)] : ""),
        el("td", { class: "files", title: candidate.files.join("\n") }, candidate.files.join(", ")),
        el("td", {}, candidate.auto ? badge("not submitted") : ""))))));
  }
  $("help").append(el("h2", {}, "Keys"), el("dl", {}, KEYS.map(([keys, what]) => [el("dt", {}, keys.split(" ").map((key) => [el("kbd", {}, key), " "])), el("dd", {}, what)])),
    el("p", { class: "where" }, "Shift+click on a second node compares it with the selected one."));
}

// --- search and keys --------------------------------------------------------------------------------------------------

let texts = null, hits = [];
function find(query) {
  const wanted = query.toLowerCase();
  if (wanted && !texts) {
    texts = new Map(data.nodes.map((node) => [node.id, [`#${node.id}`, node.kind, node.tool, node.exit, node.flags.join(" "), actionText(node), node.thought, node.thinking, node.observation, node.patch].join("\n").toLowerCase()]));
  }
  hits = wanted ? data.nodes.filter((node) => texts.get(node.id).includes(wanted)).map((node) => node.id) : [];
  svg.classList.toggle("searching", Boolean(wanted));
  for (const node of data.nodes) $(`node-${node.id}`).classList.toggle("hit", hits.includes(node.id));
  $("hits").textContent = wanted ? String(hits.length) : "";
}
function nextHit(by) {
  if (!hits.length) return;
  const at = hits.indexOf(selected);
  select(at < 0 ? hits[by > 0 ? 0 : hits.length - 1] : hits[(at + by + hits.length) % hits.length]);
}

function nearest(direction) {
  const at = place.get(selected);
  const score = (id) => { const to = place.get(id); return (to.y - at.y) * direction * 1000 / ROW + Math.abs(to.x - at.x); };
  const there = data.nodes.map((node) => node.id).filter((id) => (place.get(id).y - at.y) * direction > 1);
  return there.sort((one, other) => score(one) - score(other))[0];
}

function sibling(by) {
  const parent = byId.get(selected).parent;
  if (parent === null) return undefined;
  const all = byId.get(parent).children;
  return all[(all.indexOf(selected) + by + all.length) % all.length];
}

function step(by, wanted) {
  const order = data.nodes;
  for (let i = order.indexOf(byId.get(selected)) + by; i >= 0 && i < order.length; i += by) if (wanted(order[i])) return order[i].id;
  return undefined;
}

const COMMANDS = {
  ArrowLeft: () => byId.get(selected).parent ?? undefined, ArrowRight: () => byId.get(selected).children[0],
  ArrowUp: () => nearest(-1), ArrowDown: () => nearest(1), "[": () => sibling(-1), "]": () => sibling(1), Home: () => 0,
  n: () => step(1, () => true), p: () => step(-1, () => true), b: () => data.best ?? undefined,
  d: () => step(1, decides) ?? data.nodes.find(decides)?.id,
  c: () => { if (siblingsOf(selected).length) compareWith(sibling(1)); },
  "/": () => { $("search").focus(); $("search").select(); }, "+": () => zoom(scale * 1.2), "-": () => zoom(scale / 1.2), f: () => fit(),
  "?": () => $("help").showModal(), 1: () => { tab = "node"; show(); }, 2: () => COMMANDS.c(), 3: () => { tab = "run"; show(); },
};

function listen() {
  document.addEventListener("keydown", (event) => {
    if (event.target === $("search")) {
      if (event.key === "Escape") { $("search").value = ""; find(""); svg.focus({ preventScroll: true }); }
      if (event.key === "Enter") nextHit(event.shiftKey ? -1 : 1);
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    if (event.key === "Escape") { $("search").value = ""; find(""); return; }
    if (!Object.hasOwn(COMMANDS, event.key)) return;
    event.preventDefault();
    const id = COMMANDS[event.key]();
    if (id !== undefined) select(id);
  });
  $("search").addEventListener("input", (event) => find(event.target.value.trim()));
  $("smaller").addEventListener("click", () => zoom(scale / 1.2));
  $("larger").addEventListener("click", () => zoom(scale * 1.2));
  $("fit").addEventListener("click", fit);
  $("help-button").addEventListener("click", () => $("help").showModal());
  $("help").addEventListener("click", (event) => { if (event.target === $("help")) $("help").close(); });
  $("splitter").addEventListener("pointerdown", (event) => {
    $("splitter").setPointerCapture(event.pointerId);
    const move = (to) => { $("panel").style.width = `${Math.max(320, Math.min(innerWidth - 280, innerWidth - to.clientX))}px`; };
    $("splitter").addEventListener("pointermove", move);
    $("splitter").addEventListener("pointerup", () => $("splitter").removeEventListener("pointermove", move), { once: true });
  });
}

furniture();
draw();
listen();
fit();
const asked = /^#n(\d+)(?:-(\d+))?$/.exec(location.hash);
selected = asked && byId.has(Number(asked[1])) ? Number(asked[1]) : data.best ?? 0;
if (asked && asked[2] && byId.has(Number(asked[2]))) compareWith(Number(asked[2])); else show();
svg.focus({ preventScroll: true });
