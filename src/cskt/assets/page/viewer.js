// One crop, large: its facts, and where in it the words of the sentence lie.

import { ApiError, explain, readCrop, readOriginal, thumbnailAddress } from "./api.js";
import { byId, debounce, element, isTyping } from "./dom.js";
import { bytes, columnTitle, count, fileName, plural, score, value } from "./format.js";
import { draw } from "./heat.js";

const MOST_EXPLANATIONS = 50;
const plain = (word) => word.toLowerCase().replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, "");

/**
 * The words of a sentence as written, each with its heat map or null: [{written, heat}]. The explanation names words in
 * the order of the sentence; those that say nothing ("a", "with") are not among them.
 */
export function matched(sentence, words) {
  let next = 0;
  return sentence.split(/\s+/).filter(Boolean).map((written) => {
    const found = words.findIndex(({ word }, place) => place >= next && plain(word) === plain(written));
    if (found < 0) return { written, heat: null };
    next = found + 1;
    return { written, heat: words[found].heat };
  });
}

/**
 * Wires the dialog. `onClose()`, `onTurn(step)`, `onMark(hit, verdict)`, `onLike(imageId)`, `onGroup(column, value)`;
 * `verdictOf(imageId)`. Returns {show, hide, remark}.
 */
export function createViewer({ columns, onClose, onTurn, onMark, onLike, onGroup, verdictOf }) {
  const dialog = byId("viewer");
  const picture = byId("viewer-image");
  const explanations = new Map();
  let hit = null;
  let sentence = "";
  let pinned = null;
  let work = new AbortController();
  let originalUrl = "";

  const paint = (heat) => draw(byId("heat"), heat);

  function wordButton(written, heat) {
    const button = element("button", { type: "button", class: "word", "aria-pressed": "false" }, written);
    const peek = () => paint(heat);
    const back = () => paint(pinned?.heat ?? null);
    button.addEventListener("pointerenter", peek);
    button.addEventListener("pointerleave", back);
    button.addEventListener("click", () => {
      const again = pinned?.button === button;
      pinned?.button.setAttribute("aria-pressed", "false");
      pinned = again ? null : { button, heat };
      button.setAttribute("aria-pressed", String(!again));
      paint(pinned?.heat ?? null);
    });
    return button;
  }

  function showWords({ sentence: whole, words }) {
    const parts = matched(sentence, words).flatMap(({ written, heat }) =>
      [heat ? wordButton(written, heat) : element("span", {}, written), " "]);
    byId("words").replaceChildren(...parts, wordButton("the whole sentence", whole));
    byId("words").lastElementChild.classList.add("whole");
    byId("words").setAttribute("aria-busy", "false");
    byId("heat-field").hidden = false;
  }

  async function explained(text, imageId, signal) {
    const key = JSON.stringify([text, imageId]);
    if (!explanations.has(key)) {
      explanations.set(key, await explain(text, imageId, signal));
      if (explanations.size > MOST_EXPLANATIONS) explanations.delete(explanations.keys().next().value);
    }
    return explanations.get(key);
  }

  /** Asked for only once the user stays with a crop: explaining costs more than searching. */
  const askWhy = debounce(async (signal) => {
    try {
      showWords(await explained(sentence, hit.image_id, signal));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ApiError)) throw error;
      byId("words").setAttribute("aria-busy", "false");
      byId("why-note").textContent = error.message;
    }
  }, 120);

  function startWhy() {
    pinned = null;
    paint(null);
    byId("why-note").textContent = "";
    byId("heat-field").hidden = true;
    byId("why").hidden = sentence === "";
    if (!sentence) return;
    byId("words").setAttribute("aria-busy", "true");
    byId("words").replaceChildren(sentence);
    askWhy(work.signal);
  }

  const fact = (name, text, title = null) => [element("dt", {}, name), element("dd", { title }, text)];

  function showFacts(crop) {
    const { metadata } = hit;
    byId("facts").replaceChildren(
      ...columns.filter(({ name }) => metadata[name] !== undefined && metadata[name] !== null)
        .flatMap(({ name, kind }) => fact(columnTitle(name), value(metadata[name], kind) + (kind === "time" ? " UTC" : ""))),
      ...fact("size", `${metadata.width} × ${metadata.height}` + (crop ? `, ${bytes(crop.num_bytes)}` : "")),
      ...fact("name", hit.image_id),
      ...(crop ? fact("sha-256", `${crop.sha256.slice(0, 12)}…`, crop.sha256) : []),
    );
  }

  async function askFacts(signal) {
    showFacts(null);
    try {
      showFacts(await readCrop(hit.image_id, signal));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ApiError)) throw error;
      byId("viewer-note").textContent = error.message;
    }
  }

  function dropOriginal() {
    if (originalUrl) URL.revokeObjectURL(originalUrl);
    originalUrl = "";
    byId("original").disabled = false;
    byId("original").textContent = "Original";
  }

  byId("original").addEventListener("click", async () => {
    byId("original").disabled = true;
    try {
      const blob = await readOriginal(hit.image_id, work.signal);
      originalUrl = URL.createObjectURL(blob);
      picture.src = originalUrl;
      byId("original").textContent = "Original shown";
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ApiError)) throw error;
      byId("original").disabled = false;
      byId("viewer-note").textContent = error.message;
    }
  });

  function remark() {
    if (!hit) return;
    for (const button of byId("verdict").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.verdict === verdictOf(hit.image_id)));
    }
  }

  for (const button of byId("verdict").querySelectorAll("button")) {
    button.addEventListener("click", () => onMark(hit, button.dataset.verdict));
  }
  byId("close").addEventListener("click", () => onClose());
  byId("previous").addEventListener("click", () => onTurn(-1));
  byId("next").addEventListener("click", () => onTurn(1));
  byId("like").addEventListener("click", () => onLike(hit.image_id));
  byId("heat-opacity").addEventListener("input", (event) => {
    byId("heat").style.opacity = event.target.value;
  });
  byId("heat").style.opacity = byId("heat-opacity").value;
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault();
    onClose();
  });
  dialog.addEventListener("close", () => {
    if (hit) onClose(); // a browser may close a dialog without asking
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) onClose(); // beside the sheet
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    const onSlider = event.target.type === "range";
    if (event.key === "ArrowLeft" && !onSlider) onTurn(-1);
    else if (event.key === "ArrowRight" && !onSlider) onTurn(1);
    else if (event.key === "r") onMark(hit, "right");
    else if (event.key === "w") onMark(hit, "wrong");
    else return;
    event.preventDefault();
  });

  return {
    /** Show a hit; `place` is {first, last} among all, `text` the sentence it answers, `groupBy` the column of its group. */
    show(next, { text, first, last, groupBy }) {
      work.abort();
      work = new AbortController();
      dropOriginal();
      hit = next;
      sentence = text;
      picture.src = thumbnailAddress(hit.image_id);
      picture.alt = `Crop ${fileName(hit.image_id)}`;
      if (hit.metadata.width) byId("heat").parentElement.style.setProperty("--shape", hit.metadata.width / hit.metadata.height);
      byId("viewer-name").textContent = fileName(hit.image_id);
      byId("viewer-rank").textContent = `No. ${count(hit.rank)} · score ${score(hit.score)}`;
      byId("viewer-note").textContent = "";
      byId("previous").disabled = first;
      byId("next").disabled = last;
      byId("verdict").hidden = sentence === "";
      const group = groupBy && hit.metadata[groupBy];
      byId("whole-group").hidden = !(group && hit.group_size > 1);
      byId("whole-group").textContent = `All ${plural(hit.group_size, "crop")} of ${columnTitle(groupBy)} ${group}`;
      byId("whole-group").onclick = () => onGroup(groupBy, group);
      remark();
      startWhy();
      askFacts(work.signal);
      if (!dialog.open) dialog.showModal();
    },
    hide() {
      work.abort();
      askWhy.cancel();
      dropOriginal();
      hit = null;
      if (dialog.open) dialog.close();
    },
    remark,
  };
}
