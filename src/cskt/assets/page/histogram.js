// The threshold: a slider over the histogram of all scores of the gallery.

import { byId } from "./dom.js";
import { count, score } from "./format.js";

const STEP = 0.005;
const HEIGHT = 40;

/** How many crops score at least `cutOff`; a bin that it cuts counts in part. {number, exact} */
export function countAbove({ edges, counts }, cutOff) {
  let number = 0;
  let exact = true;
  counts.forEach((inBin, bin) => {
    const [low, high] = [edges[bin], edges[bin + 1]];
    const share = Math.min(1, Math.max(0, (high - cutOff) / (high - low)));
    if (inBin && share > 0 && share < 1) exact = false;
    number += share * inBin;
  });
  return { number: Math.round(number), exact };
}

/** The part of a histogram where there are crops: {edges, counts}; none where there is no crop at all. */
export function trimmed({ edges, counts }) {
  const first = counts.findIndex((inBin) => inBin > 0);
  if (first < 0) return null;
  const last = counts.findLastIndex((inBin) => inBin > 0);
  return { edges: edges.slice(first, last + 2), counts: counts.slice(first, last + 1) };
}

/** Wires the slider: `onInput(cutOff)` with -1 for "everything". Returns {show}. */
export function createCutOff({ onInput }) {
  const slider = byId("cut-off-slider");
  const svg = byId("histogram");
  let shown = null;

  const current = () => (Number(slider.value) <= Number(slider.min) ? -1 : Number(slider.value));

  function paint(cutOff) {
    const { edges } = shown;
    const [low, high] = [Number(slider.min), Number(slider.max)];
    svg.querySelectorAll("rect").forEach((bar, bin) => {
      bar.classList.toggle("below", (edges[bin] + edges[bin + 1]) / 2 < cutOff);
    });
    const all = cutOff <= low;
    slider.style.setProperty("--place", all ? 0 : (cutOff - low) / (high - low));
    slider.setAttribute("aria-valuetext", all ? "everything" : score(cutOff));
    byId("cut-off-value").textContent = all ? "everything" : `≥ ${score(cutOff)}`;
    const { number, exact } = all ? { number: shown.total, exact: true } : countAbove(shown, cutOff);
    byId("cut-off-count").textContent = `${exact ? "" : "about "}${count(number)} of ${count(shown.total)}`;
  }

  function draw() {
    const { edges, counts } = shown;
    const [low, high] = [Number(slider.min), Number(slider.max)];
    const tallest = Math.sqrt(Math.max(...counts));
    svg.replaceChildren(
      ...counts.map((inBin, bin) => {
        const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
        // Square roots: the few best are what a threshold is about, and beside the many they would not be seen.
        const height = inBin ? Math.max(1.5, (HEIGHT * Math.sqrt(inBin)) / tallest) : 0;
        const left = (100 * (edges[bin] - low)) / (high - low);
        const width = (100 * (edges[bin + 1] - edges[bin])) / (high - low);
        const places = { x: left + 0.06 * width, width: 0.88 * width, y: HEIGHT - height, height };
        for (const [name, place] of Object.entries(places)) bar.setAttribute(name, place.toFixed(3));
        return bar;
      }),
    );
  }

  slider.addEventListener("input", () => {
    paint(current());
    onInput(current());
  });

  return {
    /** Show a trimmed histogram, none if there is nothing to show, and the threshold in force (null for none). */
    show(held, cutOff) {
      byId("cut-off").hidden = !held;
      if (!held) return;
      shown = { ...held, total: held.counts.reduce((sum, inBin) => sum + inBin, 0) };
      const inForce = cutOff ?? -1;
      const lowest = Math.min(held.edges[0], inForce > -1 ? inForce : Infinity);
      const highest = Math.max(held.edges.at(-1), inForce);
      slider.step = STEP;
      slider.min = (Math.floor(lowest / STEP) * STEP - STEP).toFixed(3); // one step of its own for "everything"
      slider.max = (Math.ceil(highest / STEP) * STEP).toFixed(3);
      if (document.activeElement !== slider) slider.value = inForce;
      draw();
      paint(inForce);
    },
  };
}
