// The sections of the page: each is loaded when it is about to be seen, and again when a run that goes on has news.
"use strict";

const POLL_MS = 2000;
// What is drawn of a long run costs the machine half a second.
const REDRAW_MS = 10000;
let revision = "";
let redrawn = -REDRAW_MS;

function table(heads, rows, rowClass = () => null) {
  const head = element("tr", {}, ...heads.map((text) => text ? element("th", { scope: "col" }, text) : element("td")));
  const body = rows.map((cells) => element("tr", { class: rowClass(cells) }, ...cells.map((cell) =>
    cell instanceof Node ? cell : element("td", {}, String(cell)))));
  return element("div", { class: "scroll", tabindex: "0" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

const percent = (share) => share === null ? "–" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

function showHead(head) {
  document.title = `${head.name}: step ${head.step}`;
  document.getElementById("name").textContent = head.name;
  const state = document.getElementById("state");
  state.className = `state ${head.state}`;
  state.textContent = head.state;
  document.getElementById("progress-text").textContent = `step ${head.step} of ${head.num_steps}`;
  document.getElementById("progress").value = head.num_steps ? head.step / head.num_steps : 0;
  const last = head.last_step.slice(0, 3).map(([what, seconds]) => `${what} for ${seconds.toFixed(2)} s`).join(", ");
  const facts = [[head.pairs_per_s === null ? "–" : figure(head.pairs_per_s), "pairs a second"],
    [duration(head.elapsed_s), "since the start"], [duration(head.left_s), "left"],
    [String(head.num_restarts), "workers restarted"], [String(head.warnings.length), "warnings"]];
  document.getElementById("facts").replaceChildren(...facts.map(([value, label]) =>
    element("div", { class: "fact" }, element("b", {}, value), element("span", {}, label))));
  const lines = head.warnings.map((line) => element("p", { class: "line warns" }, line));
  if (head.why) lines.unshift(element("p", { class: `line ${head.state === "failed" ? "harm" : "warns"}` }, head.why));
  if (last) lines.push(element("p", { class: "soft" }, `In the last step the learner ${last}.`));
  if (head.read_frac < 1) lines.push(element("p", { class: "soft" }, `Reading the journal: ${percent(head.read_frac)} so far.`));
  document.getElementById("warnings").replaceChildren(...lines);
}

function content(section) {
  return document.querySelector(`#${section} .content`);
}

async function showScores() {
  const scores = await load("scores");
  const parts = scores.changed ? [element("p", { class: "line" }, scores.changed)] : [];
  parts.push(...scores.harm.map((line) => element("p", { class: "line harm" }, line)));
  const sign = { lower: " ↓", higher: " ↑" };
  for (const suite of scores.suites) {
    const rows = suite.rows.map((row) => [element("td", {}, row.label + (sign[row.better] || "")),
      ...row.cells.map(([value, bounds]) => element("td", {}, value, element("small", {}, bounds))),
      element("td", { class: "soft wide-only" }, row.meaning)]);
    parts.push(element("h3", {}, `Test split, ${suite.name}: ${suite.summary}`), table(["metric", ...scores.policies, ""], rows));
  }
  for (const validation of scores.validations) {
    const rows = validation.rows.map(([step, cells]) => [step === scores.picked ? `${step} (picked)` : step,
      ...cells.map(([value, low, high]) => element("td", {}, figure(value),
        low === null ? "" : element("small", {}, `${figure(low)} – ${figure(high)}`)))]);
    parts.push(element("h3", {}, `Validation split, ${validation.suite}`), table(["step", ...validation.metrics], rows));
  }
  parts.push(...scores.missing.map((line) => element("p", { class: "soft" }, line)));
  if (!scores.suites.length && !scores.validations.length) parts.push(element("p", { class: "soft" }, "Nothing is measured yet."));
  content("scores").replaceChildren(...parts);
  const gate = scores.grounding.map(([policy, line, warns]) => element("p", { class: warns ? "line warns" : "line" }, `${policy}: ${line}`));
  document.querySelector("#grounding .lines").replaceChildren(...gate);
}

async function showCharts() {
  const charts = await load("charts");
  const places = { curves: "#curves > .plots", others: "#curves .others", grounding: "#grounding .plots",
    probe: "#probe .plots", flow: "#flow .plots" };
  for (const [section, place] of Object.entries(places)) {
    const figures = charts.charts.filter((chart) => chart.section === section).map((chart) => chartFigure(chart, charts.steps));
    if (!figures.length) figures.push(element("p", { class: "soft" }, "Nothing of it is in this run's metrics."));
    const holder = document.querySelector(place);
    // Else the page would jump while the new ones are drawn.
    holder.style.minHeight = `${holder.offsetHeight}px`;
    holder.replaceChildren(...figures);
  }
}

let windowOfTime = {};

async function showTimeline() {
  const found = await load("timeline", windowOfTime);
  if (!found.lanes.length) {
    content("timeline").replaceChildren(element("p", { class: "soft" }, "The journal tells of no work yet."));
    return;
  }
  let place = document.querySelector("#timeline .plot");
  if (!place) {
    place = element("div", { class: "plot", role: "img", "aria-label": "who worked when; the table below has the shares" });
    content("timeline").replaceChildren(element("figure", { class: "wide" }, place), element("div", { class: "shares" }));
  }
  place.style.height = `${90 + 34 * found.lanes.length}px`;
  const names = found.lanes.map((lane) => lane.who);
  const kinds = [...new Set(found.lanes.flatMap((lane) => lane.stretches.map(([kind]) => kind)))];
  const day = (seconds) => new Date(seconds * 1000);
  await draw(place, () => kinds.map((kind) => {
    const own = found.lanes.flatMap((lane) => lane.stretches.filter(([one]) => one === kind).map((stretch) => [lane.who, ...stretch]));
    return { type: "bar", orientation: "h", name: kind, y: own.map(([who]) => plain(who)), base: own.map((one) => day(one[2])),
      x: own.map((one) => 1000 * (one[3] - one[2])), hovertemplate: own.map((one) => `${kind}, ${figure(one[3] - one[2])} s, ${one[4]} calls<extra></extra>`) };
  }), "", () => ({ barmode: "overlay", bargap: 0.3, hovermode: "closest",
    yaxis: { automargin: true, autorange: "reversed", categoryorder: "array", categoryarray: names.map(plain), fixedrange: true },
    xaxis: { type: "date", range: [day(found.begin), day(found.end)], gridcolor: style("--line"), automargin: true } }));
  if (isLive && !place.dataset.zooms) {
    place.dataset.zooms = "yes";
    place.on("plotly_relayout", (change) => {
      if (change["xaxis.autorange"]) windowOfTime = {};
      else if (change["xaxis.range[0]"]) {
        // Plotly's dates are local ones without a zone, as Date reads them.
        const seconds = (word) => new Date(word).getTime() / 1000;
        windowOfTime = { begin: seconds(change["xaxis.range[0]"]), end: seconds(change["xaxis.range[1]"]) };
      } else return;
      showTimeline();
    });
  }
  const workers = found.lanes.filter((lane) => lane.idle_frac !== null);
  const shares = workers.length ? table(["worker", "idle"], workers.map((lane) => [lane.who, percent(lane.idle_frac)]))
    : element("p", { class: "soft" }, "This run has not noted what its workers did.");
  document.querySelector("#timeline .shares").replaceChildren(shares);
}

async function showDrops() {
  const drops = await load("drops");
  if (!drops.series.length && !drops.rows.length) {
    content("drops").replaceChildren(element("p", { class: "soft" }, "Nothing was dropped."));
    return;
  }
  const place = element("div", { class: "plot", role: "img", "aria-label": "drops by reason over the steps; the table below has the counts" });
  const rows = drops.series.map((series) => [series.name, series.total.toLocaleString("en"),
    element("td", {}, element("button", { type: "button", class: "link", onclick: () => showReason(series.name) },
      "examples", element("span", { class: "hidden" }, ` of ${series.name}`)))]);
  const refused = drops.rows.map(([reason, count, example]) => [`${reason} (rows of data sets, at the start)`, count.toLocaleString("en"),
    element("td", { class: "soft" }, example)]);
  const plot = drops.series.length ? [element("figure", { class: "wide" }, place)] : [];
  content("drops").replaceChildren(...plot, table(["reason", "drops", ""], [...rows, ...refused]));
  if (!plot.length) return;
  await draw(place, () => drops.series.map((series) => ({ type: "bar", x: drops.steps, y: series.values, name: plain(series.name) })),
    drops.width > 1 ? `learner step, ${drops.width} together` : "learner step", () => ({ barmode: "stack", showlegend: true }));
}

async function showFlow() {
  const flow = await load("flow");
  const rows = (part, format) => part.map(([what, count, share]) => [what, format(count), percent(share)]);
  const whole = (count) => count.toLocaleString("en");
  const idle = Object.entries(flow.idle).map(([who, share]) => [who, percent(share)]);
  const parts = [element("h3", {}, "Groups that were sampled"), table(["became", "groups", "share"], rows(flow.groups, whole)),
    element("h3", {}, "Pairs"), table(["", "pairs", "share"], rows(flow.pairs, whole)),
    element("h3", {}, "The learner's time"), table(["", "seconds", "share"], rows(flow.seconds, (seconds) => figure(seconds)))];
  if (idle.length) parts.push(element("h3", {}, "Idle"), table(["worker", "share of the training"], idle));
  if (flow.num_repeated) parts.push(element("p", {}, `${whole(flow.num_repeated)} groups were sampled again after a resume.`));
  content("flow").replaceChildren(...parts);
}

async function showSettings() {
  const settings = await load("settings");
  const all = document.getElementById("all-settings").checked;
  const rows = settings.rows.filter((row) => all || row[3]).map(([key, here, there, differs]) => {
    const cells = [element("td", { class: "key" }, key), here, there];
    cells.differs = differs;
    return cells;
  });
  content("settings").replaceChildren(table(["key", "this run", settings.against], rows, (cells) => all && cells.differs ? "differs" : null));
}

const SECTIONS = { scores: showScores, curves: showCharts, timeline: showTimeline, drops: showDrops, flow: showFlow, settings: showSettings };
const seen = new Set();
let isPairsSeen = false;

async function poll() {
  try {
    const head = await load("overview");
    showHead(head);
    if (head.revision !== revision && performance.now() - redrawn > REDRAW_MS) {
      revision = head.revision;
      redrawn = performance.now();
      await Promise.all([...seen].map((section) => SECTIONS[section]()));
      if (isPairsSeen) await offerChoices();
    }
  } catch (error) {
    document.getElementById("state").textContent = "no answer";
  }
  if (isLive) setTimeout(poll, POLL_MS);
}

document.getElementById("smooth").addEventListener("change", () => drawn.forEach((render) => render()));
document.getElementById("all-settings").addEventListener("change", showSettings);
async function open(section) {
  await SECTIONS[section]();
  seen.add(section);
}

async function start() {
  // These fill other sections as well, and push the rest out of sight: nothing else is asked for before them.
  const first = ["scores", "curves"];
  await Promise.allSettled(first.map(open));
  for (const section of Object.keys(SECTIONS)) {
    if (!first.includes(section)) whenSeen(document.getElementById(section), () => open(section));
  }
  whenSeen(document.getElementById("pairs"), async () => {
    isPairsSeen = true;
    await offerChoices();
    await showPairs();
  });
}

start();
poll();
