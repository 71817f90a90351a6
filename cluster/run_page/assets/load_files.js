// Data of a page on disk: scripts that hand JSON over. Filters and the search work here, as cluster/run_page/pairs.py does.
"use strict";

const isLive = false;
const PAGE = 20;
const arriving = new Map();
const waiting = new Map();
let search = 0;

function receive(name, value) {
  waiting.get(name)(value);
}

function dataFile(name) {
  if (!arriving.has(name)) {
    arriving.set(name, new Promise((resolve, reject) => {
      waiting.set(name, resolve);
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onerror = () => reject(new Error(`data/${name}.js is missing beside this page`));
      document.head.append(script);
    }));
  }
  return arriving.get(name);
}

async function load(name, words = {}) {
  return name === "pairs" ? filtered(words) : dataFile(name);
}

function passes(row, words) {
  const [source, reason, step, isTrained, margin] = row;
  const [what, wanted] = (words.what || "pairs").split(/:(.*)/s);
  if (what === "dropped" ? !reason : what !== "all" && reason) return false;
  if (what === "dropped" && wanted && reason !== wanted) return false;
  if (what === "trained" && !isTrained || what === "waiting" && isTrained) return false;
  if (words.source && source !== words.source) return false;
  return within(step, words.step_from, words.step_to) && within(margin, words.margin_from, words.margin_to);
}

function within(value, from, to) {
  if (!from && !to) return true;
  return value !== null && !(from && value < Number(from)) && !(to && value > Number(to));
}

function ordered(places, rows, order) {
  if (order === "oldest") return places.reverse();
  if (!order || order === "newest") return places;
  const sign = order === "margin_high" ? -1 : 1;
  const key = (place) => rows[place][4] === null ? Infinity : sign * rows[place][4];
  return places.sort((one, other) => key(one) - key(other) || one - other);
}

async function itemAt(place, perFile) {
  const file = String(Math.floor(place / perFile)).padStart(4, "0");
  return (await dataFile(`pairs_${file}`))[place % perFile];
}

function textOf(item) {
  const sides = item.sides.map((side) => side.spans.map((span) => span[0]).join("") + "\n" + side.note);
  const answers = item.answers.map((answer) => answer.text + "\n" + answer.note);
  return [item.id, item.detail, ...sides, ...(item.sides.length ? [] : answers)].join("\n").toLowerCase();
}

// What this page does not hold of the run, as far as it matters to these words.
function leftOut(index, words) {
  const count = (number) => number.toLocaleString("en");
  const parts = [];
  const isOfPairs = !(words.what || "").startsWith("dropped");
  if (isOfPairs && index.num_pairs > index.most_pairs) {
    parts.push(`this page holds the newest ${count(index.most_pairs)} of ${count(index.num_pairs)} pairs`);
  }
  if (!isOfPairs) parts.push(`this page holds the newest ${count(index.most_drops)} of each reason`);
  if ((words.text || "").trim().length >= 3) {
    parts.push(`the search looks at the first ${count(index.most_characters)} characters of every answer`);
  }
  return parts.join("; ");
}

async function filtered(words) {
  const mine = ++search;
  const index = await dataFile("pairs");
  const { rows, per_file: perFile } = index;
  let places = [...rows.keys()].filter((place) => passes(rows[place], words));
  const text = (words.text || "").trim().toLowerCase();
  if (text.length >= 3) {
    const hits = [];
    for (const place of places) {
      if (mine !== search) return null;
      if (textOf(await itemAt(place, perFile)).includes(text)) hits.push(place);
    }
    places = hits;
  }
  places = ordered(places, rows, words.order);
  const numPages = Math.max(1, Math.ceil(places.length / PAGE));
  const page = Math.min(Number(words.page || 0), numPages - 1);
  const shown = places.slice(page * PAGE, (page + 1) * PAGE);
  const items = await Promise.all(shown.map((place) => itemAt(place, perFile)));
  return { total: places.length, page, num_pages: numPages, items, left_out: leftOut(index, words) };
}
