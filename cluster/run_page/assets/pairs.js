// The pairs: filters, search, pages, and one article for each.
"use strict";

const filters = document.getElementById("filters");
let pageNumber = 0;
let asked = 0;

function words() {
  const chosen = Object.fromEntries([...new FormData(filters)].filter(([, value]) => value !== ""));
  return { ...chosen, page: String(pageNumber) };
}

async function showPairs() {
  const mine = ++asked;
  const status = document.getElementById("found");
  const text = filters.elements.text.value.trim();
  status.textContent = "looking …";
  let found;
  try {
    found = await load("pairs", words());
  } catch (error) {
    status.textContent = error.message;
    return;
  }
  // Another question was asked meanwhile.
  if (mine !== asked || !found) return;
  pageNumber = found.page;
  const short = text && text.length < 3 ? " (a search needs 3 letters)" : "";
  const part = found.left_out ? ` (${found.left_out})` : "";
  status.textContent = `${found.total.toLocaleString("en")} ${found.total === 1 ? "hit" : "hits"}${short}${part}`;
  document.getElementById("list").replaceChildren(...found.items.map(article));
  document.getElementById("page-number").textContent = `page ${found.page + 1} of ${found.num_pages.toLocaleString("en")}`;
  document.getElementById("previous").disabled = found.page === 0;
  document.getElementById("next").disabled = found.page + 1 >= found.num_pages;
}

function article(item) {
  const pictures = item.pictures.map((sha256, at) => picture(sha256, `picture ${at + 1} of ${item.id}`));
  const left = element("div", {}, ...pictures, element("div", { class: "id" }, item.id));
  const right = element("div", {}, tags(item));
  if (item.question || item.prompt) {
    const question = item.question || `prompt ${item.prompt}; its words come with the next checkpoint`;
    right.append(element("p", { class: "question text", dir: "auto" }, question));
  }
  if (item.detail) right.append(element("p", {}, item.detail));
  if (item.sides.length) right.append(element("div", { class: "said" }, ...item.sides.map(side)));
  if (item.answers.length) right.append(answers(item));
  return element("article", { tabindex: "-1", "aria-label": item.id }, left, right);
}

function picture(sha256, alt) {
  const shown = element("img", { src: `pictures/${sha256}.webp`, alt, loading: "lazy", decoding: "async" });
  shown.addEventListener("error", () => {
    shown.replaceWith(element("p", { class: "hint" }, "The picture is not in the run's directory yet."));
  });
  return shown;
}

function tags(item) {
  const parts = [element("b", {}, item.reason ? `dropped: ${item.reason}` : item.step === null ? "waiting" : `step ${item.step}`)];
  const before = item.discarded ?? item.settled;
  if (item.step === null && before) parts.push(`, before step ${before}`);
  parts.push(` · ${item.source}`);
  if (item.version !== null) parts.push(` · weights ${item.version}`);
  if (item.margin !== null) parts.push(` · margin ${figure(item.margin)}`);
  return element("p", { class: "tags" }, ...parts);
}

function side(shown) {
  const text = element("div", { class: "text", dir: "auto" });
  for (const [words, kind] of shown.spans) {
    text.append(kind ? element("mark", { class: kind }, words) : words);
  }
  if (!shown.spans.length) text.append("(nothing)");
  text.append(more(shown));
  return element("div", {}, element("h3", {}, shown.name), text, judged(shown));
}

function more(answer) {
  return answer.left_out ? ` … ${answer.left_out.toLocaleString("en")} more characters` : "";
}

function judged(answer) {
  if (answer.score === null && !answer.note) return null;
  return element("div", { class: "judged" }, `judge: ${figure(answer.score)}${answer.note ? " · " + answer.note : ""}`);
}

function answers(item) {
  const list = element("ul", {}, ...item.answers.map((answer) => element("li", {},
    element("span", { class: "text", dir: "auto" }, answer.text || "(nothing)", more(answer)),
    answer.count > 1 ? element("span", { class: "soft" }, ` × ${answer.count}`) : null, judged(answer))));
  if (!item.sides.length) return list;
  const count = item.answers.reduce((sum, answer) => sum + answer.count, 0);
  return element("details", {}, element("summary", {}, `all ${count} answers`), list);
}

async function offerChoices() {
  const choices = await load("choices");
  const count = (number) => number.toLocaleString("en");
  const what = [["pairs", `pairs (${count(choices.pairs)})`], ["trained", `trained (${count(choices.trained)})`],
    ["waiting", `waiting (${count(choices.waiting)})`], ["dropped", "dropped, any reason"],
    ...Object.entries(choices.reasons).map(([reason, number]) => [`dropped:${reason}`, `dropped: ${reason} (${count(number)})`])];
  const sources = [["", "any"], ...Object.entries(choices.sources).map(([source, number]) => [source, `${source} (${count(number)})`])];
  offer(filters.elements.what, what);
  offer(filters.elements.source, sources);
}

function offer(select, options) {
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, label]) => element("option", { value }, label)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

function showReason(reason) {
  filters.reset();
  filters.elements.what.value = `dropped:${reason}`;
  pageNumber = 0;
  document.getElementById("pairs").scrollIntoView();
  showPairs();
}

let typing;
filters.addEventListener("input", () => {
  pageNumber = 0;
  clearTimeout(typing);
  typing = setTimeout(showPairs, 250);
});
filters.addEventListener("reset", () => {
  pageNumber = 0;
  setTimeout(showPairs);
});
filters.addEventListener("submit", (event) => event.preventDefault());
for (const [id, by] of [["previous", -1], ["next", 1]]) {
  document.getElementById(id).addEventListener("click", async () => {
    pageNumber += by;
    await showPairs();
    document.querySelector("#list article")?.focus();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) return;
  if (event.key === "/") {
    event.preventDefault();
    filters.elements.text.focus();
  } else if (event.key === "j" || event.key === "k") {
    const all = [...document.querySelectorAll("#list article")];
    const at = all.indexOf(document.activeElement) + (event.key === "j" ? 1 : -1);
    all[Math.max(0, Math.min(all.length - 1, at))]?.focus();
  }
});
