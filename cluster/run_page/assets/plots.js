// Plots, in the colours of the page. What data says is escaped: Plotly reads tags in names.
"use strict";

const LIGHT = ["#1f5fa8", "#b3401a", "#0b7a6b", "#8a3d9e", "#7a5c00", "#a3245f", "#3d6b1f", "#4a4f57"];
const DARK = ["#8ab8f0", "#ff9f75", "#6fd6c4", "#d9a0ea", "#e6c65a", "#ff9cc4", "#a9d98a", "#c0c6ce"];
const darkness = window.matchMedia("(prefers-color-scheme: dark)");
const drawn = new Map();

darkness.addEventListener("change", () => drawn.forEach((draw) => draw()));

function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");
}

function figure(value) {
  if (value === null || value === undefined) return "–";
  return new Intl.NumberFormat("en", { maximumSignificantDigits: 4 }).format(value);
}

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function layoutOf(across) {
  const axis = { gridcolor: style("--line"), zerolinecolor: style("--soft"), automargin: true, exponentformat: "e" };
  return {
    margin: { l: 46, r: 8, t: 6, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: style("--ink"), size: 12, family: "system-ui, sans-serif" },
    colorway: darkness.matches ? DARK : LIGHT, hovermode: "x unified",
    hoverlabel: { bgcolor: style("--card"), bordercolor: style("--line"), font: { color: style("--ink") } },
    xaxis: { ...axis, title: { text: across, standoff: 4 } }, yaxis: { ...axis },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, showlegend: true,
  };
}

async function plotlyHere() {
  while (!window.Plotly) await new Promise((resolve) => setTimeout(resolve, 20));
}

async function draw(place, makeTraces, across, changes = () => ({})) {
  await plotlyHere();
  const render = () => Plotly.react(place, makeTraces(), { ...layoutOf(across), ...changes() },
    { displayModeBar: false, responsive: true });
  drawn.set(place, render);
  await render();
  place.dataset.drawn = "yes";
}

// One figure of a chart of cluster/run_page/metrics.py; drawn when it is about to be seen.
function chartFigure(chart, steps) {
  const place = element("div", { class: "plot" });
  const names = chart.series.map((series) => series.name).join(", ");
  const caption = element("figcaption", {}, chart.title, " ", element("small", {}, chart.unit || ""));
  const said = element("p", { class: "hidden" }, summary(chart));
  // Room for the legend, one row for two names.
  if (chart.series.length > 2) place.style.height = `${210 + 20 * Math.ceil(chart.series.length / 2)}px`;
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `${chart.title}: ${names}`);
  whenSeen(place, () => draw(place, () => chart.series.map((series) => ({
    x: series.steps || steps, y: smoothed(series.values), name: plain(series.name), mode: "lines+markers",
    connectgaps: true, line: { width: 1.6 }, marker: { size: (series.steps || steps).length > 60 ? 0.1 : 4 },
    hovertemplate: "%{y:.5g}",
  })), "learner step", () => ({ showlegend: chart.series.length > 1 })));
  return element("figure", {}, caption, place, said);
}

function summary(chart) {
  return chart.series.map((series) => {
    const known = series.values.filter((value) => value !== null);
    return known.length ? `${series.name}: from ${figure(known[0])} to ${figure(known.at(-1))}.` : "";
  }).join(" ");
}

function smoothed(values) {
  if (!document.getElementById("smooth").checked) return values;
  return values.map((value, at) => {
    const near = values.slice(Math.max(0, at - 9), at + 1).filter((one) => one !== null);
    return value === null || !near.length ? null : near.reduce((one, other) => one + other, 0) / near.length;
  });
}

const seeing = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      seeing.unobserve(entry.target);
      entry.target.whenSeen();
    }
  }
}, { rootMargin: "300px" });

function whenSeen(place, call) {
  place.whenSeen = call;
  seeing.observe(place);
}

// Creates an element; texts become text, never markup.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
