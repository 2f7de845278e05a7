"use strict";
// One board a second comes as a server-sent event; the page keeps what it has seen and draws it. Texts are set as text.

const KEEP = 300;
const WINDOW = 10;
const seen = new Map();
const parts = new Map();
const find = (id) => document.getElementById(id);
let token = "";

function make(tag, cls, text) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  return node;
}

function once(key, into, build) {
  if (!parts.has(key)) {
    const node = build();
    parts.set(key, node);
    find(into).append(node);
    find(into).hidden = false;
  }
  return parts.get(key);
}

function number(value) {
  const size = Math.abs(value);
  if (size >= 10000) return Math.round(value).toLocaleString("en");
  if (size >= 100 || Number.isInteger(value)) return value.toFixed(0);
  return size >= 1 ? value.toFixed(1) : Number(value.toPrecision(2)).toString();
}

function worded(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "s") return value < 1 ? `${number(value * 1000)} ms` : `${number(value)} s`;
  if (unit.startsWith("/")) return `${number(value)}${unit}`;
  return `${number(value)} ${value === 1 ? unit.replace(/s$/, "") : unit}`;
}

// on an axis: exact, without the name of what is counted, and no halves of it
function marked(value, unit) {
  if (value === 0) return "0";
  const brief = unit === "s" && value < 1;
  const text = Number((brief ? 1000 * value : value).toPrecision(3)).toLocaleString("en");
  if (unit === "s") return `${text} ${brief ? "ms" : "s"}`;
  if (unit.startsWith("/")) return `${text}${unit}`;
  return Number.isInteger(value) ? text : "";
}

function remember(key, at, values) {
  if (!seen.has(key)) seen.set(key, []);
  const past = seen.get(key);
  past.push({ at, values });
  while (past[0].at < at - KEEP - WINDOW) past.shift();
  return past;
}

// what the server kept while no page was open, or while this one had no connection
function recall(history, now) {
  const known = new Map([...seen].map(([key, past]) => [key, past[past.length - 1].at]));
  const add = (key, at, values) => at > (known.get(key) ?? -Infinity) && remember(key, at, values);
  history.forEach((then) => {
    const at = now - then.ago_s;
    Object.entries(then.lines).forEach(([title, values]) => add(`lines ${title}`, at, values));
    Object.entries(then.spreads).forEach(([title, counts]) => add(`spread ${title}`, at, counts));
  });
}

function tile(item) {
  const node = once(`tile ${item.label}`, "tiles", () => {
    const made = make("div", "tile");
    made.setAttribute("role", "group");
    made.setAttribute("aria-label", item.label);
    made.append(make("span", "", item.label), make("b"), make("span"));
    return made;
  });
  node.className = `tile${item.ok === null ? "" : item.ok ? " good" : " bad"}`;
  const [, value, note] = node.children;
  if (value.textContent !== item.value) value.textContent = item.value;
  note.textContent = item.ok === false ? `${item.note || "missed"} ✗` : item.ok && item.note ? `${item.note} ✓` : item.note;
}

function panel(key, title, inner) {
  return once(key, "charts", () => {
    const made = make("section", "chart");
    const head = make("div", "head");
    head.append(make("h2", "", title), make("small"));
    made.append(head, ...inner());
    return made;
  });
}

function svg() {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("viewBox", "0 0 300 100");
  made.setAttribute("preserveAspectRatio", "none");
  made.setAttribute("role", "img");
  const plot = make("div", "plot");
  const times = make("div", "times");
  times.append(make("span"), make("span", "", "now"));
  plot.append(make("div", "levels"), made);
  for (const node of [plot.firstChild, times]) node.setAttribute("aria-hidden", "true");
  return [plot, times, make("ul")];
}

// the next of 1, 2, 2.5, 5, 10 times a power of ten: so that half of it is a plain number too
function above(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 2.5, 5, 10].find((step) => step * power >= value * 0.999);
}

function stroke(into, cls, points) {
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("class", cls);
  path.setAttribute("d", points.length ? `M${points.map((p) => p.join(" ")).join("L")}` : "");
  into.append(path);
}

// series: name -> [{at, value}], value null where nothing is known
function draw(title, unit, series, limit) {
  const node = panel(`chart ${title}`, title, svg);
  const [head, plot, times, legend] = node.children;
  const [levels, chart] = plot.children;
  const every = Object.values(series).flat();
  const known = every.map((p) => p.value).filter((v) => v !== null);
  const top = above(Math.max(...known, limit ?? 0, unit === "s" ? 1e-3 : 1));
  const end = every.length ? every[every.length - 1].at : 0;
  const span = Math.max(20, Math.min(KEEP, end - Math.min(...every.map((p) => p.at))));
  const x = (at) => (300 * (1 - (end - at) / span)).toFixed(1);
  const y = (v) => (100 * (1 - v / top)).toFixed(1);
  chart.replaceChildren();
  legend.replaceChildren();
  levels.replaceChildren(...[top, top / 2, 0].map((value) => make("span", "", marked(value, unit))));
  for (const level of [0, 50, 100]) stroke(chart, "base", [[0, level], [300, level]]);
  if (limit !== null) {
    stroke(chart, "limit", [[0, y(limit)], [300, y(limit)]]);
    legend.append(make("li", "limit", `limit ${worded(limit, unit)}`));
  }
  const labels = [];
  Object.entries(series).forEach(([name, points], i) => {
    const kept = points.filter((p) => p.value !== null && end - p.at <= span);
    stroke(chart, `k${i % 6}${i % 12 > 5 ? " more" : ""}`, kept.map((p) => [x(p.at), y(p.value)]));
    const now = points.length ? points[points.length - 1].value : null;
    labels.push(`${name} ${worded(now, unit)}`);
    legend.append(make("li", `k${i % 6}${i % 12 > 5 ? " more" : ""}`, labels[labels.length - 1]));
  });
  const ago = span < 120 ? `${Math.round(span)} s` : `${number(span / 60)} min`;
  times.firstChild.textContent = `${ago} ago`;
  head.lastChild.textContent = `up to ${worded(Math.max(...known, 0), unit)}`;
  chart.setAttribute("aria-label", `${title}: ${labels.join(", ")}`);
}

function grown(past, name) {
  return past.slice(1).map((now, i) => {
    const before = past[i];
    const seconds = Math.max(now.at - before.at, 1e-3);
    return { at: now.at, value: Math.max(0, (now.values[name] ?? 0) - (before.values[name] ?? 0)) / seconds };
  });
}

function lines(item, at) {
  const past = remember(`lines ${item.title}`, at, item.values);
  const series = {};
  for (const name of Object.keys(item.values)) {
    series[name] = item.counts ? grown(past, name) : past.map((p) => ({ at: p.at, value: p.values[name] ?? null }));
  }
  draw(item.title, item.unit, series, item.limit);
}

function quantile(bounds, counts, q) {
  const total = counts.reduce((a, b) => a + b, 0);
  if (total <= 0) return null;
  let below = 0;
  for (let i = 0; i < bounds.length; i += 1) {
    if (below + counts[i] >= q * total) {
      const low = i ? bounds[i - 1] : 0;
      return low + (bounds[i] - low) * ((q * total - below) / counts[i]);
    }
    below += counts[i];
  }
  return bounds[bounds.length - 1];
}

function spread(item, at) {
  const past = remember(`spread ${item.title}`, at, item.counts);
  const series = { p50: [], p99: [] };
  let start = 0;
  past.forEach((now, i) => {
    while (start < i && past[start + 1].at <= now.at - WINDOW) start += 1;
    const before = past[start].values;
    const counts = now.values.map((n, j) => n - (before[j] ?? 0));
    series.p50.push({ at: now.at, value: quantile(item.bounds, counts, 0.5) });
    series.p99.push({ at: now.at, value: quantile(item.bounds, counts, 0.99) });
  });
  draw(item.title, item.unit, series, item.limit);
}

function shares(item) {
  const node = panel(`shares ${item.title}`, item.title, () => [make("div", "bars")]);
  const [head, bars] = node.children;
  const names = Object.keys(item.values);
  const sum = names.reduce((before, name) => before + item.values[name], 0);
  const whole = (name) => (item.wholes ? item.wholes[name] ?? 0 : sum);
  if (bars.children.length !== names.length * 3) {
    bars.replaceChildren();
    names.forEach((name, i) => {
      const bar = make("i", `k${i % 6}`);
      bar.setAttribute("role", "meter");
      bar.setAttribute("aria-label", name);
      bar.append(make("b"));
      bars.append(make("span", "", name), bar, make("span", "n"));
    });
  }
  names.forEach((name, i) => {
    const share = whole(name) > 0 ? item.values[name] / whole(name) : 0;
    bars.children[3 * i + 1].firstChild.style.width = `${100 * share}%`;
    bars.children[3 * i + 1].setAttribute("aria-valuenow", (100 * share).toFixed(1));
    bars.children[3 * i + 2].textContent = `${(100 * share).toFixed(1)} %`;
  });
  head.lastChild.textContent = worded(Math.max(0, ...names.map(whole)), item.unit);
}

function grid(item) {
  const node = once(`grid ${item.title}`, "grids", () => {
    const made = make("section", "grid");
    made.append(make("h2", "", item.title), make("table"));
    return made;
  });
  const numeric = item.columns.map((_, i) => item.rows.every((cells) => /^[-$\d–]/.test(cells[i])));
  const row = (cells, tag) => {
    const made = make("tr");
    made.append(...cells.map((cell, i) => make(tag, numeric[i] && i ? "n" : "", cell)));
    if (tag === "th") [...made.children].forEach((head) => head.setAttribute("scope", "col"));
    return made;
  };
  node.lastChild.replaceChildren(row(item.columns, "th"), ...item.rows.map((cells) => row(cells, "td")));
}

function show(board) {
  const at = performance.now() / 1000;
  find("name").textContent = board.name;
  find("kind").textContent = `· ${board.kind}`;
  if (document.title !== board.name) document.title = board.name;
  recall(board.history, at);
  board.tiles.forEach(tile);
  board.lines.forEach((item) => lines(item, at));
  board.spreads.forEach((item) => spread(item, at));
  board.shares.forEach(shares);
  board.grids.forEach(grid);
}

function state(cls, text) {
  document.body.className = cls;
  if (find("state").textContent !== text) find("state").textContent = text;
}

async function read(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    events.filter((event) => event.startsWith("data: ")).forEach((event) => show(JSON.parse(event.slice(6))));
  }
}

async function follow() {
  for (;;) {
    try {
      const headers = token ? { authorization: `Bearer ${token}` } : {};
      const response = await fetch("events", { headers, cache: "no-store" });
      if (response.status === 401) {
        find("ask").hidden = false;
        return state("off", token ? "the token is not right" : "a token is needed");
      }
      find("ask").hidden = true;
      state("on", "live");
      await read(response);
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
    }
    state("off", "no connection; trying again");
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = find("token").value;
  follow();
});
follow();
