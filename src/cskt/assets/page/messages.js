// What stands in place of the crops when there are none to show.

import { byId, element } from "./dom.js";
import { score } from "./format.js";

const STEP = 0.005;

/** A message with an optional line of code and one button: {label, act}. */
export function tell({ title, line = "", code = "", action = null, kind = "calm" }) {
  const message = byId("message");
  message.dataset.kind = kind;
  message.hidden = false;
  message.replaceChildren(
    ...[
      element("h2", {}, title),
      line ? element("p", {}, line) : null,
      code ? element("pre", {}, element("code", {}, code)) : null,
      action ? element("button", { type: "button", class: "button", onclick: action.act }, action.label) : null,
    ].filter(Boolean),
  );
}

export function tellNothing() {
  byId("message").hidden = true;
  byId("message").replaceChildren();
}

export const tellEmptyGallery = (name) =>
  tell({
    title: "Nothing here yet",
    line: `The gallery ${name} holds no crop. Fill it from a folder of pictures, then load this page again:`,
    code: "cskt index GALLERY --images FOLDER",
  });

/** What went wrong, in the service's own line, and a way on. */
export const tellError = (error, action, title = error.code === "unreachable" ? "No answer" : "That did not work") =>
  tell({ kind: "error", title, line: error.message, action });

/** Nothing was found: because of the filter, or because of the threshold, which `lower(cutOff)` lowers. */
export function tellNoHit({ held, cutOff, where, lower, clearFilter }) {
  if (!held) {
    tell({
      title: where ? "No crop fulfils the filter" : "Nothing to compare with",
      line: where,
      action: where ? { label: "Clear the filter", act: clearFilter } : null,
    });
    return;
  }
  const best = held.edges.at(-2); // the lower end of the best crop's bin
  const next = Math.floor(best / STEP) * STEP;
  tell({
    title: `Nothing above the threshold ${score(cutOff)}`,
    line: `The best crops score about ${score(best)}.`,
    action: { label: `Lower it to ${score(next)}`, act: () => lower(Number(next.toFixed(3))) },
  });
}
