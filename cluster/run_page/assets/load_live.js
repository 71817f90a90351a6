// Data of a run that is served: every view is JSON of its own address.
"use strict";

const isLive = true;

async function load(name, words = {}) {
  const query = new URLSearchParams(words).toString();
  const answer = await fetch(`views/${name}${query ? "?" + query : ""}`);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}
