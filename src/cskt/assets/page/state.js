// What the user asks for, kept in the page's address: a link or a bookmark is a saved search.

/** No question yet. `cutOff` null is the gallery's own, -1 is none; `picture` names one that only this tab holds. */
export const EMPTY = Object.freeze({
  text: "", not: "", like: "", picture: "", balance: 0.5, where: "", cutOff: null, groupBy: "", open: "",
});

const NAMES = { text: "q", not: "not", like: "like", picture: "picture", balance: "balance", where: "where",
  cutOff: "min", groupBy: "group", open: "open" };
const NUMBERS = new Set(["balance", "cutOff"]);

/** State -> query string; what is as in EMPTY is left out. */
export function toAddress(state) {
  const parameters = new URLSearchParams();
  for (const [key, name] of Object.entries(NAMES)) {
    if (state[key] !== EMPTY[key]) parameters.set(name, String(state[key]));
  }
  const text = parameters.toString();
  return text ? `?${text}` : "";
}

/** Query string -> state; what cannot be read is as in EMPTY. */
export function fromAddress(text) {
  const parameters = new URLSearchParams(text);
  const state = { ...EMPTY };
  for (const [key, name] of Object.entries(NAMES)) {
    const found = parameters.get(name);
    if (found === null) continue;
    if (!NUMBERS.has(key)) state[key] = found;
    else if (found.trim() !== "" && Number.isFinite(Number(found))) state[key] = Number(found);
  }
  return state;
}

/** Whether there is anything to search for. */
export const asks = (state) => Boolean(state.text.trim() || state.like || state.picture);

/** Whether two states have the same answer. */
export const sameQuestion = (one, other) =>
  Object.keys(EMPTY).every((key) => key === "open" || one[key] === other[key]);

const RUN_MILLISECONDS = 3000;

/**
 * The state, tied to the browser's history. `onMove(state, previous)` is called after every change.
 *
 * Changes of one `run` (the letters of a sentence, the places of a slider) share one step of the history until the
 * run pauses or another change comes between.
 */
export function createState(onMove) {
  let state = fromAddress(location.search);
  let lastRun = "";
  let lastTime = -Infinity;

  const move = (next) => {
    const previous = state;
    state = next;
    onMove(state, previous);
  };
  addEventListener("popstate", () => {
    lastRun = "";
    move(fromAddress(location.search));
  });

  return {
    now: () => state,
    change(patch, { run = "", replace = false } = {}) {
      const next = { ...state, ...patch };
      if (toAddress(next) === toAddress(state)) return;
      const goesOn = run !== "" && run === lastRun && performance.now() - lastTime < RUN_MILLISECONDS;
      lastRun = run;
      lastTime = performance.now();
      const url = location.pathname + toAddress(next);
      if (replace || goesOn) history.replaceState(history.state, "", url);
      else history.pushState({ inside: true, opened: Boolean(patch.open) }, "", url);
      move(next);
    },
    endRun() {
      lastRun = "";
    },
    /** Leave the large view by the way it was entered, so that "back" does not open it again. */
    closeView() {
      if (history.state?.opened) history.back();
      else this.change({ open: "" }, { replace: true });
    },
  };
}
