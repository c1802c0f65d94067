// The dashboard: reads one feed, draws it, and lets a newcomer send a first request. No library, no build step.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const IDEAS = ["What is Baseload?", "How do I scale a model to zero?", "How do I add a model?", "What happens if a worker crashes?"];
const WORDS = {
  start: "Started", stop: "Stopped", drain: "Let finish", wake: "Woke", sleep: "Put to sleep", scale_up: "Added a replica",
  scale_down: "Removed a replica", retry: "Tried elsewhere", refuse: "Refused", backoff: "Waits before retrying",
  adopt: "Took over", ready: "Ready", crash: "Crashed", remove: "Removed", add: "Added",
};
const SECRET = "baseload-key", THEME = "baseload-theme";
let latest = null, chat = null;

// -- figures as people read them ------------------------------------------------------------------------------

const compact = new Intl.NumberFormat("en", { maximumFractionDigits: 1, notation: "compact" });
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const number = (n) => (n >= 100000 ? compact.format(n) : plain.format(n >= 100 ? Math.round(n) : n));
const dollars = (n) => (n === 0 ? "$0" : n >= 0.095 ? "$" + n.toFixed(2) : "$" + Number(n.toPrecision(2)));
const watts = (n) => (n >= 100 ? n.toFixed(0) : plain.format(n));
function joules(n) {
  if (n >= 3.6e6) return plain.format(n / 3.6e6) + " kWh";
  return n >= 3600 ? plain.format(n / 3600) + " Wh" : number(Math.round(n)) + " J";
}
function duration(s) {
  if (s < 10) return plain.format(s) + " s";
  if (s < 120) return Math.round(s) + " s";
  return s < 7200 ? Math.round(s / 60) + " min" : plain.format(s / 3600) + " h";
}
const plural = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;
const basis = (label) => ({ modelled: "modelled: no meter to read", rapl: "measured by the processor (RAPL)",
  nvml: "measured by the GPU (NVML)", mixed: "partly measured, partly modelled" }[label] || "");

// -- small pieces of page ---------------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}
function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}
function figure(node, value, unit = "") {
  const wanted = value + unit;
  if (node.dataset.shown === wanted) return;
  node.dataset.shown = wanted;
  node.replaceChildren(value, ...(unit ? [element("small", {}, unit)] : []));
}
function spark(svg, values, label) {
  const width = 300, height = 40, top = Math.max(...values, 1e-9);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-label", label);
  const shape = (name, attributes) => {
    const node = svg.querySelector("." + name) || svg.appendChild(document.createElementNS(SVG, "path"));
    for (const [key, value] of Object.entries({ class: name, ...attributes })) node.setAttribute(key, value);
  };
  shape("base", { d: `M0 ${height - 0.5}H${width}` });
  const steps = Math.max(values.length, 90) - 1, from = width - (width * (values.length - 1)) / steps;
  const points = values.map((v, i) => `${(from + (i * width) / steps).toFixed(1)} ${(height - 1 - (v / top) * (height - 4)).toFixed(1)}`);
  shape("area", { d: points.length > 1 ? `M${from.toFixed(1)} ${height}L${points.join("L")}L${width} ${height}Z` : "" });
  shape("line", { d: points.length > 1 ? "M" + points.join("L") : "" });
}

// -- drawing ----------------------------------------------------------------------------------------------------

function draw(now) {
  latest = now;
  text($("headline"), now.headline);
  document.title = now.queued ? `${now.queued} waiting · Baseload` : now.in_flight ? `${now.in_flight} running · Baseload` : "Baseload";
  drawFigures(now);
  drawModels(now);
  drawDecisions(now);
  drawToday(now);
  drawKeys(now);
  text($("foot"), `Baseload ${now.version}, up ${duration((now.now_ms - now.started_ms) / 1000)}. ` +
    `${plural(now.requests_total, "request")} so far, ${number(now.refused_total)} refused. Days begin at midnight UTC.`);
}

function drawFigures(now) {
  const past = now.history, shown = Math.round((past.tokens_per_s.length * past.step_s) / 60);
  const minutes = shown > 1 ? `the last ${shown} min` : "the last minute";
  const peak = Math.max(0, ...past.tokens_per_s);
  figure($("f-tokens"), number(now.tokens_per_s));
  text($("n-tokens"), peak > 0 ? `written by models; peak ${number(peak)} in ${minutes}` : `no token written in ${minutes}`);
  spark($("s-tokens"), past.tokens_per_s, `Tokens per second over ${minutes}, peak ${number(peak)}`);
  figure($("f-running"), number(now.in_flight), now.queued ? ` + ${number(now.queued)} waiting` : "");
  const asked = `${number(now.requests_last_minute)} asked in the last minute`;
  text($("n-running"), now.queued ? `the oldest waits ${duration(now.oldest_wait_s)}; ${asked}` : asked);
  spark($("s-running"), past.in_flight, `Requests running over ${minutes}`);
  figure($("f-cost"), dollars(now.usd_per_hour), " / h");
  text($("n-cost"), now.today ? `${dollars(now.today.usd)} since midnight` : "");
  spark($("s-cost"), past.usd_per_hour, `Dollars per hour over ${minutes}`);
  figure($("f-power"), watts(now.power_w), " W");
  text($("n-power"), now.power_w ? basis(now.power_basis) : "nothing of ours is running");
  spark($("s-power"), past.power_w, `Watts over ${minutes}`);
}

function keyed(list, rows, key, make, update) {
  const old = new Map([...list.children].map((node) => [node.dataset.key, node]));
  const nodes = rows.map((row) => {
    const node = old.get(key(row)) || make(row);
    node.dataset.key = key(row);
    update(node, row);
    return node;
  });
  if (nodes.length !== list.children.length || nodes.some((node, i) => node !== list.children[i])) list.replaceChildren(...nodes);
}

function drawModels(now) {
  if (!now.models.length) {
    $("models").replaceChildren(element("li", { class: "empty" }, "No model is here yet. In a terminal: ",
      element("code", {}, "baseload models add NAME FOLDER"), " adds a Hugging Face folder under the name clients will use."));
  } else {
    keyed($("models"), now.models, (m) => m.name, makeModel, updateModel);
  }
  const picker = $("try-model"), names = now.models.map((m) => m.name);
  if (!picker.dataset.drawn || names.join("\n") !== [...picker.options].map((o) => o.value).join("\n")) {
    picker.dataset.drawn = "yes";
    const chosen = picker.value;
    picker.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    picker.value = names.includes(chosen) ? chosen : names.includes("guide") ? "guide" : names[0] || "";
    drawTry();
  }
}
function makeModel() {
  return element("li", { class: "model" },
    element("div", {}, element("h3"), element("span", { class: "state" })),
    element("p", { class: "says" }), element("p", { class: "totals faint" }),
    element("p", { class: "why" }), element("div", { class: "replicas" }));
}
function updateModel(node, model) {
  text(node.querySelector("h3"), model.name);
  const state = node.querySelector(".state");
  state.dataset.state = model.state;
  text(state, model.state);
  text(node.querySelector(".says"), model.says);
  text(node.querySelector(".totals"), model.requests_total
    ? `${plural(model.requests_total, "request")}, ${number(model.tokens_total)} tokens` : "no request yet");
  const why = node.querySelector(".why");
  why.hidden = !model.error;
  text(why, model.error);
  keyed(node.querySelector(".replicas"), model.replicas, (r) => r.replica_id, makeReplica, updateReplica);
}
function makeReplica() {
  return element("div", { class: "replica" },
    element("div", { class: "top" }, element("span", { class: "state" }), element("span", { class: "id" })),
    element("span", { class: "says" }),
    element("meter", { min: 0, max: 1, high: 0.85, "aria-label": "KV cache in use" }), element("span", { class: "note" }));
}
function updateReplica(node, replica) {
  const state = node.querySelector(".state");
  state.dataset.state = replica.state;
  text(state, replica.state);
  text(node.querySelector(".id"), replica.replica_id);
  text(node.querySelector(".says"), replica.says);
  node.querySelector("meter").value = replica.kv_usage;
  node.querySelector("meter").hidden = replica.state === "starting";
  text(node.querySelector(".note"), (replica.state === "starting" ? "" : `KV cache ${(replica.kv_usage * 100).toFixed(0)} % in use · `) + `${watts(replica.power_w)} W` +
    (replica.basis === "modelled" ? " modelled" : ""));
}

function ago(ms) {
  const s = Math.max(0, ms / 1000);
  return s < 3 ? "just now" : s < 86400 ? duration(s) + " ago" : Math.round(s / 86400) + " d ago";
}
function drawDecisions(now) {
  if (!now.decisions.length) {
    $("decisions").replaceChildren(element("li", { class: "empty" },
      "Nothing decided yet. Each start, stop, retry or refusal will be listed here with its reason."));
    return;
  }
  keyed($("decisions"), now.decisions, (d) => `${d.seq}-${d.what}-${d.model}`, () => element("li", { class: "decision" },
    element("time"), element("div", {}, element("strong"), element("p"))), (node, d) => {
    const time = node.querySelector("time");
    time.dateTime = new Date(d.at_ms).toISOString();
    text(time, ago(now.now_ms - d.at_ms));
    text(node.querySelector("strong"), (WORDS[d.what] || d.what.replaceAll("_", " ")) + (d.model ? ` · ${d.model}` : ""));
    text(node.querySelector("p"), d.why);
  });
}

function drawToday(now) {
  const t = now.today;
  if (!t) return;
  const rows = [
    ["Requests", number(t.requests), t.failed ? `${number(t.failed)} failed` : "none failed"],
    ["Tokens", number(t.tokens), "read and written"],
    ["Cost", dollars(t.usd), t.usd_per_million_tokens === null ? "no token yet" : `${dollars(t.usd_per_million_tokens)} per million tokens`],
    ["Energy", joules(t.joules), t.tokens_per_joule === null ? basis(t.basis) : `${number(t.tokens_per_joule)} tokens per joule` + (t.basis === "modelled" ? ", modelled" : "")],
  ];
  keyed($("today"), rows, (r) => r[0], (r) => element("div", {}, element("dt", {}, r[0]), element("dd")), (node, [, value, note]) => {
    const dd = node.querySelector("dd"), wanted = value + note;
    if (dd.dataset.shown !== wanted) {
      dd.dataset.shown = wanted;
      dd.replaceChildren(value, element("small", {}, note));
    }
  });
  const parts = [["useful", t.useful_s], ["idle", t.idle_s], ["cold", t.cold_s]], total = t.useful_s + t.idle_s + t.cold_s;
  $("seconds").hidden = total === 0;
  if (!total) return;
  const bar = $("seconds-bar");
  let x = 0;
  parts.forEach(([name, s], i) => {
    const rect = bar.children[i] || bar.appendChild(document.createElementNS(SVG, "rect"));
    const width = (1000 * s) / total;
    for (const [key, value] of Object.entries({ class: name, x, y: 0, width, height: 14 })) rect.setAttribute(key, value);
    x += width;
  });
  const words = { useful: "worked", idle: "idled, waiting for work", cold: "started up" };
  const said = parts.map(([name, s]) => `${duration(s)} ${words[name]}`);
  bar.setAttribute("aria-label", "Replica time today: " + said.join(", "));
  keyed($("seconds-note"), parts, (p) => p[0], (p) => element("span", { class: `key k-${p[0]}` }),
    (node, [name, s]) => text(node, `${duration(s)} ${words[name]}`));
}

function makeKey() {
  const cell = (name) => element("td", { class: name });
  return element("tr", {}, element("th", { scope: "row" }, element("span", { class: "name" }), element("small")),
    element("td", {}, element("span", { class: "tier" })), cell("n requests"), cell("n tokens"), cell("n cost"), cell("n energy"));
}
function updateKey(row, key) {
  text(row.querySelector(".name"), key.name || key.key_id);
  text(row.querySelector("th small"), key.is_revoked ? "revoked" : `${key.begins}…` + (key.is_admin ? " admin" : ""));
  const tier = row.querySelector(".tier");
  tier.dataset.tier = key.tier;
  text(tier, key.tier);
  const words = key.classes.filter((c) => c.requests).map((c) => `${number(c.requests)} ${c.tier || "without class"}`);
  const notes = [...(words.length > 1 || key.classes.some((c) => c.tier !== key.tier) ? words : []), ...(key.failed ? [`${number(key.failed)} failed`] : [])];
  const requests = row.querySelector(".requests"), wanted = number(key.requests) + notes.join();
  if (requests.dataset.shown !== wanted) {
    requests.dataset.shown = wanted;
    requests.replaceChildren(number(key.requests), ...notes.map((note) => element("small", {}, note)));
  }
  text(row.querySelector(".tokens"), number(key.tokens));
  text(row.querySelector(".cost"), dollars(key.usd));
  text(row.querySelector(".energy"), joules(key.joules));
}
function drawKeys(now) {
  keyed($("keys"), now.keys, (k) => k.key_id, makeKey, updateKey);
  const more = now.keys_total - now.keys.length;
  text($("keys-note"), (more ? `${plural(more, "key")} more, used less: baseload usage shows all. ` : "") +
    "A key’s class is the highest service_tier it may ask for, and what it gets where it asks for none.");
}

// -- try it -----------------------------------------------------------------------------------------------------

function drawTry() {
  const model = $("try-model").value, place = location.origin;
  document.querySelector("#try [type=submit]").disabled = !model;
  $("try-ideas").replaceChildren(...(model === "guide" ? IDEAS : []).map((idea) => {
    const button = element("button", { type: "button" }, idea);
    button.addEventListener("click", () => { $("try-text").value = idea; $("try").requestSubmit(); });
    return button;
  }));
  text($("curl"), `curl ${place}/v1/chat/completions \\\n  -H "Authorization: Bearer $(cat baseload-data/first-key)" \\\n` +
    `  -H "Content-Type: application/json" \\\n  -d '{"model": "${model}", "temperature": 0, "messages": [{"role": "user", "content": "Hello"}]}'`);
}

async function ask(event) {
  event.preventDefault();
  const question = $("try-text").value.trim(), model = $("try-model").value, answer = $("try-answer");
  if (!question || !model || chat) return;
  chat = new AbortController();
  answer.hidden = false;
  answer.className = "answer";
  answer.textContent = "";
  $("try-stop").hidden = false;
  text($("try-state"), "Sending…");
  const began = performance.now();
  const state = (latest?.models.find((m) => m.name === model) || {}).state;
  const waiting = setInterval(() => text($("try-state"),
    `${state === "awake" || state === "remote" ? "Thinking" : `Waking ${model}`}… ${((performance.now() - began) / 1000).toFixed(0)} s`), 250);
  let first = 0, pieces = 0;
  try {
    const reply = await fetch("/v1/chat/completions", {
      method: "POST", signal: chat.signal,
      headers: { authorization: `Bearer ${sessionStorage.getItem(SECRET)}`, "content-type": "application/json" },
      body: JSON.stringify({ model, stream: true, max_tokens: 256, temperature: 0, messages: [{ role: "user", content: question }] }),
    });
    if (!reply.ok) throw new Error(await refusal(reply));
    for await (const data of events(reply)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const piece = chunk.choices?.[0]?.delta?.content;
      if (!piece) continue;
      if (!first) { first = performance.now(); clearInterval(waiting); text($("try-state"), "Answering…"); }
      pieces += 1;
      answer.append(piece);
    }
    const seconds = (performance.now() - first) / 1000;
    text($("try-state"), first ? `First word after ${((first - began) / 1000).toFixed(2)} s` +
      (pieces > 1 && seconds > 0.05 ? `, then ${plain.format((pieces - 1) / seconds)} a second` : "") : "The model gave an empty answer.");
  } catch (error) {
    const stopped = error.name === "AbortError";
    text($("try-state"), stopped ? "Stopped." : "");
    if (!stopped) { answer.className = "answer bad"; answer.textContent = error.message; }
  } finally {
    clearInterval(waiting);
    chat = null;
    $("try-stop").hidden = true;
  }
}

// -- the feed -----------------------------------------------------------------------------------------------------

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((l) => l.startsWith("data:")).map((l) => l.slice(5).trimStart()).join("\n");
      if (data) yield data;
    }
  }
}
async function refusal(reply) {
  try { return (await reply.json()).error.message; } catch { return `The server answered ${reply.status}.`; }
}
function link(state, words) {
  $("link").dataset.state = state;
  text($("link"), words);
}
function closeDoor(message = "") {
  sessionStorage.removeItem(SECRET);
  document.body.dataset.view = "closed";
  link("", "");
  text($("door-error"), message);
  $("key").focus();
}

async function follow() {
  for (let pause = 500; sessionStorage.getItem(SECRET); pause = Math.min(pause * 2, 8000)) {
    try {
      const reply = await fetch("/dashboard/feed", {
        headers: { authorization: `Bearer ${sessionStorage.getItem(SECRET)}`, accept: "text/event-stream" },
      });
      if (reply.status === 401 || reply.status === 403) return closeDoor(await refusal(reply));
      if (!reply.ok) throw new Error(await refusal(reply));
      for await (const data of events(reply)) {
        if (!sessionStorage.getItem(SECRET)) return;
        draw(JSON.parse(data));
        document.body.dataset.view = "open";
        link("live", "live");
        pause = 500;
      }
    } catch (error) {
      console.warn(error);
    }
    link("lost", "No connection. Baseload may have stopped; trying again…");
    await new Promise((wake) => setTimeout(wake, pause));
  }
}

// -- beginning ----------------------------------------------------------------------------------------------------

function theme(chosen) {
  if (chosen) {
    document.documentElement.dataset.theme = chosen;
    localStorage.setItem(THEME, chosen);
  }
}
const dark = () => (document.documentElement.dataset.theme ||
  (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

theme(localStorage.getItem(THEME));
$("theme").addEventListener("click", () => theme(dark() ? "light" : "dark"));
$("leave").addEventListener("click", () => { chat?.abort(); closeDoor(); });
$("door-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(SECRET, $("key").value.trim());
  $("key").value = "";
  text($("door-error"), "");
  follow();
});
$("try").addEventListener("submit", ask);
$("try-stop").addEventListener("click", () => chat?.abort());
$("try-model").addEventListener("change", drawTry);
$("try-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("try").requestSubmit(); }
});

const carried = new URLSearchParams(location.hash.slice(1)).get("key");
if (carried) {
  sessionStorage.setItem(SECRET, carried);
  history.replaceState(null, "", location.pathname);
}
if (sessionStorage.getItem(SECRET)) follow(); else $("key").focus();
