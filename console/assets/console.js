// The pages' scripts: the stream of seconds, the charts, what is asked before an action, and tables that stay fresh.
// What comes from the cluster is either HTML that the server escaped, or text that goes in as text.
"use strict";

const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

// --- whether the master is heard ---------------------------------------------------------------------------------

const connection = {
  heard: Date.now(),
  since: null,
  ok() {
    this.heard = Date.now();
    if (this.since === null && document.body.dataset.state === "on") return;
    this.since = null;
    document.body.dataset.state = "on";
    $("#connection").textContent = "live";
    $("#lost").hidden = true;
  },
  lost() {
    if (this.since === null) this.since = this.heard;
    document.body.dataset.state = "off";
    const at = new Date(this.since).toLocaleTimeString();
    $("#connection").textContent = "lost";
    $("#lost").textContent =
      `No connection since ${at}. What stands below is the last that was heard; this page tries again by itself.`;
    $("#lost").hidden = false;
  },
};

/** Puts what the server rendered into the place of what it rendered before. */
function replace(element, html) {
  const parsed = new DOMParser().parseFromString(html, "text/html");
  element.replaceChildren(...parsed.body.childNodes);
}

// --- charts ------------------------------------------------------------------------------------------------------

const HOUR = 3600;
const charts = { times: [], columns: new Map(), plots: [], last: 0 };

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function short(value) {
  if (value === null || value === undefined) return "–";
  if (Math.abs(value) >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (Math.abs(value) >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  return value >= 100 || Number.isInteger(value) ? String(Math.round(value)) : value.toFixed(1);
}

function draw(figure) {
  const { key, unit } = figure.dataset;
  const [holder, output] = [$(".plot", figure), $("output", figure)];
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const options = {
    width: holder.clientWidth || 300,
    height: 118,
    padding: [8, 8, 0, 0],
    cursor: { sync: { key: "hour" }, points: { size: 6 }, drag: { x: true, y: false } },
    legend: { show: false },
    scales: { x: { time: true }, y: { range: (_, low, high) => [0, high === null || high <= 0 ? 1 : high * 1.15] } },
    axes: [
      { ...axis, size: 22, space: 70 },
      { ...axis, size: 44, space: 28, values: (_, splits) => splits.map(short) },
    ],
    series: [{}, { stroke: colour("--accent"), fill: colour("--accent-fill"), width: 1.5, spanGaps: false, points: { show: false } }],
    hooks: {
      setCursor: [
        (plot) => {
          const at = plot.cursor.idx;
          figure.classList.toggle("pointed", at !== null && at !== undefined);
          say(at ?? plot.data[0].length - 1, plot);
        },
      ],
    },
  };
  function say(at, plot) {
    const value = plot.data[1][at];
    output.textContent = short(value) + (value === null || value === undefined ? "" : unit);
  }
  const plot = new uPlot(options, [charts.times, charts.columns.get(key) ?? []], holder);
  say(charts.times.length - 1, plot);
  charts.plots.push({ key, plot, say, figure });
  new ResizeObserver(() => plot.setSize({ width: holder.clientWidth, height: 118 })).observe(holder);
}

function redraw() {
  for (const { key, plot, say, figure } of charts.plots) {
    // Who has zoomed in keeps the part that is looked at; a double click shows everything again.
    const zoomed = plot.scales.x.min > charts.times[0] && figure.dataset.zoomed === "yes";
    plot.setData([charts.times, charts.columns.get(key)], !zoomed);
    if (!figure.classList.contains("pointed")) say(charts.times.length - 1, plot);
  }
}

function take(sample) {
  // Samples that were heard twice, as after a reconnection, count once.
  if (sample.at_ms <= charts.last) return;
  charts.last = sample.at_ms;
  charts.times.push(sample.at_ms / 1000);
  [...charts.columns.keys()].forEach((key, place) => charts.columns.get(key).push(sample.values[place]));
  if (charts.times.length > HOUR) {
    charts.times.shift();
    for (const column of charts.columns.values()) column.shift();
  }
}

async function past() {
  const answer = await fetch("/past");
  if (!answer.ok) return;
  const { series, samples } = await answer.json();
  charts.times = [];
  charts.last = 0;
  charts.columns = new Map(series.map((key) => [key, []]));
  samples.forEach(take);
  if (charts.plots.length === 0) $$(".chart").forEach(draw);
  redraw();
}

// --- the stream of seconds ---------------------------------------------------------------------------------------

async function follow() {
  await past().catch(() => connection.lost());
  const events = new EventSource("/events");
  let broken = false;
  events.addEventListener("open", () => {
    // What was missed meanwhile is asked for: the console has the past hour.
    if (broken) past().catch(() => {});
    broken = false;
  });
  events.addEventListener("sample", (event) => {
    connection.ok();
    take(JSON.parse(event.data));
    if (!document.hidden) redraw();
  });
  events.addEventListener("live", (event) => {
    const focused = document.activeElement?.closest("#live a, #live button");
    // Whoever is about to press something must not lose it under their hands.
    if (focused && focused.matches(":focus-visible")) return;
    replace($("#live"), event.data);
  });
  events.addEventListener("error", () => {
    broken = true;
    connection.lost();
    // A browser gives up on an answer that is none, such as that of a port where too many look already.
    if (events.readyState === EventSource.CLOSED) setTimeout(follow, 3000);
  });
  setInterval(() => {
    if (Date.now() - connection.heard > 5000) connection.lost();
  }, 1000);
  document.addEventListener("visibilitychange", () => document.hidden || redraw());
}

// --- the log's tail ----------------------------------------------------------------------------------------------

/** Rows of the log that a page keeps, and that wait while it is held. */
const ROWS_MAX = 1000;

function tail(rows) {
  const waiting = [];
  let isPaused = false;
  // Whoever reads further down, or has marked something, must not lose it under their eyes.
  const isHeld = () => isPaused || rows.closest(".scroll").scrollTop > 4 || String(getSelection()) !== "";
  function show() {
    if (!isHeld() && waiting.length > 0) {
      rows.prepend(...waiting.splice(0));
      while (rows.children.length > ROWS_MAX) rows.lastElementChild.remove();
      rows.closest(".scroll").hidden = false;
      $("#nothing")?.remove();
    }
    $("#hold").textContent = isPaused ? "Go on" : "Pause";
    $("#hold").setAttribute("aria-pressed", String(isPaused));
    const more = waiting.length === ROWS_MAX ? `${ROWS_MAX} or more` : waiting.length;
    $("#held").textContent = waiting.length > 0 ? `${more} newer wait${isPaused ? "" : ": scroll up to see them"}` : "";
  }
  function listen() {
    const events = new EventSource(rows.dataset.tail);
    events.addEventListener("rows", (event) => {
      connection.ok();
      const parsed = new DOMParser().parseFromString(`<table><tbody>${event.data}</tbody></table>`, "text/html");
      waiting.unshift(...$$("tr", parsed));
      waiting.length = Math.min(waiting.length, ROWS_MAX);
      show();
    });
    events.addEventListener("beat", () => {
      connection.ok();
      $("#tail-trouble").hidden = true;
    });
    events.addEventListener("trouble", (event) => {
      $("#tail-trouble").textContent = event.data;
      $("#tail-trouble").hidden = false;
    });
    events.addEventListener("error", () => {
      connection.lost();
      // A browser gives up on an answer that is none, and with it forgets what it heard last.
      if (events.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 3000);
    });
  }
  $("#hold").addEventListener("click", () => {
    isPaused = !isPaused;
    if (!isPaused) rows.closest(".scroll").scrollTop = 0;
    show();
  });
  rows.closest(".scroll").addEventListener("scroll", show);
  document.addEventListener("selectionchange", show);
  listen();
}

// --- tables that stay fresh --------------------------------------------------------------------------------------

async function refresh() {
  const isBusy = document.hidden || $("#confirm").open || String(getSelection()) !== "";
  const isWriting = document.activeElement?.matches("#content input, #content button:focus-visible, #content a:focus-visible");
  if (isBusy || isWriting) return;
  await reload();
}

async function reload() {
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    const parsed = new DOMParser().parseFromString(await answer.text(), "text/html");
    // A page that is told of something by itself says which part of it is asked for again.
    const part = $("#fresh") ? "#fresh" : "#content";
    const [fresh, scroll] = [$(part, parsed), $(".scroll")?.scrollLeft ?? 0];
    if (fresh) $(part).replaceChildren(...fresh.childNodes);
    else location.reload();
    if ($(".scroll")) $(".scroll").scrollLeft = scroll;
    connection.ok();
  } catch {
    connection.lost();
  }
}

// --- actions -----------------------------------------------------------------------------------------------------

const TOKEN = "greenroom.admin-token";
let asked = null;

function ask(button) {
  asked = button.dataset;
  $("#confirm-title").textContent = asked.title;
  $("#confirm-text").textContent = asked.text;
  $("#confirm-yes").textContent = button.textContent;
  $("#confirm-yes").disabled = false;
  $("#confirm-problem").hidden = true;
  askToken(sessionStorage.getItem(TOKEN) === null);
  $("#confirm").showModal();
  ($("#token-field").hidden ? $("#confirm-no") : $("#token")).focus();
}

function askToken(isAsked) {
  $("#token-field").hidden = !isAsked;
  $("#token").required = isAsked;
  if (isAsked) $("#token").value = "";
}

function refuse(text) {
  $("#confirm-problem").textContent = text;
  $("#confirm-problem").hidden = false;
  $("#confirm-yes").disabled = false;
}

async function act() {
  const token = $("#token-field").hidden ? sessionStorage.getItem(TOKEN) : $("#token").value.trim();
  $("#confirm-yes").disabled = true;
  try {
    const answer = await fetch(asked.path, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${token}` },
      body: asked.body,
    });
    if (!answer.ok) {
      const problem = await answer.json().catch(() => ({ code: String(answer.status), message: answer.statusText }));
      if (answer.status === 401) {
        sessionStorage.removeItem(TOKEN);
        askToken(true);
      }
      refuse(`Nothing was done. ${problem.message} (${problem.code})`);
      return;
    }
  } catch {
    refuse("The master can't be reached, and nobody knows whether it was done: look at the page before you try again.");
    return;
  }
  sessionStorage.setItem(TOKEN, token);
  $("#confirm").close();
  tell(`Done: ${asked.title.replace(/\?$/, "")}`);
  if (asked.then) location.href = asked.then;
  else if (!("live" in document.body.dataset)) await reload();
}

function tell(text) {
  const toast = $("#toast");
  toast.textContent = text;
  toast.classList.add("shown");
  setTimeout(() => toast.classList.remove("shown"), 4000);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.act");
  if (button) ask(button);
  if (event.target.id === "confirm-no") $("#confirm").close();
  const chart = event.target.closest(".chart");
  if (chart && event.detail === 2) $$(".chart").forEach((figure) => delete figure.dataset.zoomed);
});
document.addEventListener("pointerup", (event) => {
  if (event.target.closest(".plot")) $$(".chart").forEach((figure) => (figure.dataset.zoomed = "yes"));
});
$("#confirm").addEventListener("submit", (event) => {
  event.preventDefault();
  act();
});

const followed = $("[data-tail]");
if (followed) tail(followed);
if ("live" in document.body.dataset) {
  follow();
} else {
  if (!followed) connection.ok();
  const every = Number(document.body.dataset.refresh);
  if (every > 0) setInterval(refresh, every);
}
