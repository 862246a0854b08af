// The hits as a grid of crops: one tab stop, arrow keys between them.

import { thumbnailAddress } from "./api.js";
import { byId, element, icon } from "./dom.js";
import { columnTitle, fileName, plural, score, value } from "./format.js";

const NUM_SKELETONS = 24;
const WIDEST = 0.8;
const TALLEST = 0.3;

/** Width / height that most of the hits have, within what a grid of people can be. */
function commonShape(hits) {
  const shapes = hits
    .filter(({ metadata }) => metadata.width > 0 && metadata.height > 0)
    .map(({ metadata }) => metadata.width / metadata.height)
    .sort((one, other) => one - other);
  const middle = shapes[Math.floor(shapes.length / 2)] ?? 0.45;
  return Math.min(WIDEST, Math.max(TALLEST, middle));
}

/** The two columns that say most beside the picture: the first text of few values, and the first time. */
export function quietColumns(columns) {
  const few = columns.find(({ kind, values }) => kind === "text" && values.length > 0);
  const time = columns.find(({ kind }) => kind === "time");
  const others = columns.filter((column) => column !== few && column !== time);
  return [few, time, ...others].filter(Boolean).slice(0, 2);
}

/**
 * Wires the grid: `onOpen(hit)`, `onMark(hit, verdict)`, `onLeaveUp()`; `verdictOf(imageId)` is asked for marks.
 * Returns {show, wait, clear, remark, fade, focus, element}.
 */
export function createGrid({ columns, onOpen, onMark, onLeaveUp, verdictOf }) {
  const grid = byId("grid");
  const quiet = quietColumns(columns);
  const cards = new Map();
  let hits = [];
  let range = [0, 1];

  function card(hit) {
    const image = element("img", {
      src: thumbnailAddress(hit.image_id), alt: "", loading: "lazy", decoding: "async", draggable: "false",
    });
    const frame = element("span", { class: "frame" }, image);
    image.addEventListener("error", () => frame.classList.add("missing"));
    image.addEventListener("load", () => frame.classList.add("loaded"));
    if (image.complete && image.naturalWidth) frame.classList.add("loaded");
    const told = quiet.map(({ name, kind }) => value(hit.metadata[name], kind)).join(" · ");
    const facts = { type: "button", class: "hit", tabindex: "-1", "data-id": hit.image_id, title: hit.image_id };
    const button = element("button", facts,
      frame,
      element("span", { class: "bar" }, element("span")),
      element("span", { class: "line" }, element("span", { class: "rank" }), element("span", { class: "score" })),
      told ? element("span", { class: "quiet" }, told) : null,
      element("span", { class: "quiet" }, fileName(hit.image_id)));
    const verdicts = ["right", "wrong"].map((verdict) =>
      element("button", {
        type: "button", tabindex: "-1", class: `mark ${verdict}`, "data-verdict": verdict,
        title: `${verdict} (${verdict[0]})`, "aria-label": `Mark as ${verdict}: crop ${hit.image_id}`, onclick: () => onMark(button.hit, verdict),
      }, icon(verdict === "right" ? "tick" : "cross")));
    return element("li", {}, button,
      element("span", { class: "marks" }, ...verdicts),
      element("span", { class: "group-size", hidden: true }));
  }

  function fill(item, hit) {
    const button = item.firstElementChild;
    button.hit = hit;
    item.querySelector(".rank").textContent = hit.rank;
    item.querySelector(".score").textContent = score(hit.score);
    const share = (hit.score - range[0]) / (range[1] - range[0]);
    item.querySelector(".bar > span").style.setProperty("--share", Math.min(1, Math.max(0.02, share)));
    const group = item.querySelector(".group-size");
    group.hidden = !(hit.group_size > 1);
    group.textContent = `×${hit.group_size}`;
    remark(item);
  }

  function remark(item) {
    const button = item.firstElementChild;
    const { hit } = button;
    const verdict = verdictOf(hit.image_id);
    item.dataset.verdict = verdict;
    const said = [`Crop ${hit.image_id}`, `rank ${hit.rank}`, `score ${score(hit.score)}`,
      ...quiet.map(({ name, kind }) => `${columnTitle(name)} ${value(hit.metadata[name], kind)}`),
      ...(hit.group_size > 1 ? [plural(hit.group_size, "crop") + " of its group"] : []),
      ...(verdict ? [`marked ${verdict}`] : [])];
    button.setAttribute("aria-label", said.join(", "));
    for (const mark of item.querySelectorAll(".mark")) {
      mark.setAttribute("aria-pressed", String(mark.dataset.verdict === verdict));
    }
  }

  const buttons = () => [...grid.querySelectorAll(".hit")];

  /** The one crop that the tab key reaches. */
  function rove(button) {
    grid.querySelectorAll(".hit[tabindex='0']").forEach((other) => other.setAttribute("tabindex", "-1"));
    button?.setAttribute("tabindex", "0");
  }

  function neighbour(button, key) {
    const all = buttons();
    const place = all.indexOf(button);
    const top = (other) => other.getBoundingClientRect().top;
    const second = all.findIndex((other) => top(other) > top(all[0]));
    const perRow = second < 0 ? all.length : second;
    if (key === "ArrowUp" && place < perRow) return null;
    const places = {
      ArrowLeft: place - 1, ArrowRight: place + 1, ArrowUp: place - perRow, ArrowDown: place + perRow,
      Home: 0, End: all.length - 1,
    };
    return all[places[key]] ?? button;
  }

  grid.addEventListener("focusin", (event) => {
    if (event.target.matches(".hit")) rove(event.target);
  });
  grid.addEventListener("click", (event) => {
    const button = event.target.closest(".hit");
    if (button) onOpen(button.hit);
  });
  grid.addEventListener("keydown", (event) => {
    if (!event.target.matches(".hit") || event.ctrlKey || event.metaKey || event.altKey) return;
    const verdict = { r: "right", w: "wrong" }[event.key];
    if (verdict) onMark(event.target.hit, verdict);
    else if (/^(Arrow|Home$|End$)/.test(event.key)) {
      const next = neighbour(event.target, event.key);
      if (next) next.focus();
      else onLeaveUp();
    } else return;
    event.preventDefault();
  });

  return {
    /** Show hits, the best first; a crop that was there already keeps its element. A bar spans `scoreRange`. */
    show(next, scoreRange) {
      hits = next;
      range = scoreRange[1] > scoreRange[0] ? scoreRange : [scoreRange[0] - 1, scoreRange[1]];
      grid.style.setProperty("--shape", commonShape(hits));
      grid.setAttribute("aria-busy", "false");
      const items = hits.map((hit) => {
        const item = cards.get(hit.image_id) ?? card(hit);
        cards.set(hit.image_id, item);
        fill(item, hit);
        item.classList.remove("below");
        return item;
      });
      const wanted = new Set(hits.map((hit) => hit.image_id));
      for (const imageId of cards.keys()) if (!wanted.has(imageId)) cards.delete(imageId);
      const focused = document.activeElement;
      // Only what differs is moved: an element that is taken out and put back loses the focus.
      [...grid.children].forEach((child) => items.includes(child) || child.remove());
      items.forEach((item, place) => {
        if (grid.children[place] !== item) grid.insertBefore(item, grid.children[place] ?? null);
      });
      if (focused?.matches?.(".hit") && focused.isConnected) focused.focus({ preventScroll: true });
      if (!grid.querySelector(".hit[tabindex='0']")) rove(buttons()[0]);
    },
    /** Grey places where crops will be; crops already there are kept, dimmed. */
    wait() {
      grid.setAttribute("aria-busy", "true");
      if (!hits.length) {
        grid.replaceChildren(...Array.from({ length: NUM_SKELETONS }, () =>
          element("li", { class: "skeleton", "aria-hidden": "true" }, element("span", { class: "frame" }), element("span", { class: "bar" }))));
      }
    },
    clear() {
      hits = [];
      cards.clear();
      grid.setAttribute("aria-busy", "false");
      grid.replaceChildren();
    },
    remark: () => cards.forEach((item) => remark(item)),
    /** Fade crops below a new threshold until the answer arrives. */
    fade: (cutOff) => cards.forEach((item) => item.classList.toggle("below", item.firstElementChild.hit.score < cutOff)),
    /** Move the focus to a crop, or to the first. */
    focus(imageId) {
      const button = cards.get(imageId)?.firstElementChild ?? buttons()[0];
      button?.focus();
    },
  };
}
