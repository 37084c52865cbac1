"use strict";
// Charts are drawn when they come near the screen, so that a long page opens fast.
const charts = JSON.parse(document.getElementById("charts").textContent);
const drawn = new Set();

async function draw(place) {
  if (drawn.has(place)) return;
  drawn.add(place);
  const item = charts[place.dataset.chart];
  await Bokeh.embed.embed_item({ ...item, doc: structuredClone(item.doc) }, place);
  place.dataset.drawn = "yes";
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
}, { rootMargin: "400px" });
const places = [...document.querySelectorAll("[data-chart]")];
places.forEach((place) => near.observe(place));
const drawAll = () => Promise.all(places.map(draw));
addEventListener("beforeprint", drawAll);

// A canvas keeps its colours: a change of the scheme requires drawing again.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const place of [...drawn]) {
    drawn.delete(place);
    place.replaceChildren();
    draw(place);
  }
});

const search = document.getElementById("search");
search?.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\s+/);
  for (const row of document.querySelectorAll("#keys tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});
