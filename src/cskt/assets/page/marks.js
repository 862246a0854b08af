// Hits marked right or wrong for a sentence. They stay in this browser, by gallery, until they are cleared.

import { ApiError, exportMarks } from "./api.js";
import { byId, element } from "./dom.js";
import { plural } from "./format.js";

const keyOf = (text, imageId) => JSON.stringify([text, imageId]);

function stored(place) {
  try {
    return JSON.parse(localStorage.getItem(place) ?? "[]").map((mark) => [keyOf(mark.text, mark.image_id), mark]);
  } catch {
    return []; // no storage, or something else in it: begin anew
  }
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/**
 * The marks of one gallery, and their tray. `onChange()` follows every change; `onNote(line)` tells of an export that
 * failed or is not whole.
 * Returns {of, toggle}.
 */
export function createMarks({ galleryName, onChange, onNote }) {
  const place = `cskt.marks.${galleryName}`;
  let marks = new Map(stored(place));

  function changed() {
    try {
      localStorage.setItem(place, JSON.stringify([...marks.values()]));
    } catch {
      // storage is full or refused: the marks last as long as the page
    }
    show();
    onChange();
  }

  function show() {
    const right = [...marks.values()].filter((mark) => mark.right).length;
    byId("tray").hidden = marks.size === 0;
    byId("tray-count").textContent = `${right} right · ${marks.size - right} wrong`;
  }

  async function download(format) {
    try {
      const { blob, name, numLeftOut } = await exportMarks(format, [...marks.values()]);
      save(blob, name);
      if (numLeftOut) onNote(`Left out: ${plural(numLeftOut, "crop")} without a file in the indexed folder, where training looks.`);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      onNote(error.message);
    }
  }

  byId("export-csv").addEventListener("click", () => download("csv"));
  byId("export-jsonl").addEventListener("click", () => download("jsonl"));
  byId("marks-clear").addEventListener("click", () => {
    if (!confirm(`Forget ${marks.size} marks? Export them first if you need them.`)) return;
    marks = new Map();
    changed();
  });
  addEventListener("storage", (event) => {
    if (event.key !== place) return;
    marks = new Map(stored(place)); // another tab marked something
    show();
    onChange();
  });
  show();

  return {
    /** "right", "wrong" or "" for a crop under a sentence. */
    of(text, imageId) {
      const mark = marks.get(keyOf(text, imageId));
      return mark ? (mark.right ? "right" : "wrong") : "";
    },
    /** Mark a crop, or take the same mark back. */
    toggle(text, imageId, verdict) {
      const key = keyOf(text, imageId);
      const same = this.of(text, imageId) === verdict;
      marks.delete(key);
      if (!same) marks.set(key, { text, image_id: imageId, right: verdict === "right" });
      changed();
    },
  };
}
