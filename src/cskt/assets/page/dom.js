// Elements by hand. Text always enters as text: nothing in this page is ever parsed as HTML.

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * A new element. `attributes` are set as attributes, functions as listeners (`onclick`), true as an empty attribute;
 * false and null are left out. Children are nodes or text.
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const ICONS = {
  close: "M6 6l12 12M18 6L6 18",
  picture: "M4 6.5A2.5 2.5 0 0 1 6.5 4h11A2.5 2.5 0 0 1 20 6.5v11a2.5 2.5 0 0 1-2.5 2.5h-11A2.5 2.5 0 0 1 4 17.5ZM4.5 16.5l4.5-4.5 4 4 2.5-2.5 4 4M15.5 8.5h.01",
  left: "M14.5 5l-7 7 7 7",
  right: "M9.5 5l7 7-7 7",
  theme: "M12 4a8 8 0 1 0 0 16ZM12 4a8 8 0 0 1 0 16",
  tick: "M5 12.5l4.5 4.5L19 7.5",
  cross: "M7 7l10 10M17 7L7 17",
};

/** A line drawing of 24 x 24 units in the colour of the text around it. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** `call` once things have been quiet for `milliseconds`; `.cancel()` forgets what waits. */
export function debounce(call, milliseconds) {
  let timer;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), milliseconds);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

/** Whether the keyboard is writing text just now, so that single letters are no commands. */
export const isTyping = (target) =>
  target.matches("textarea, select, [contenteditable], input:not([type=range], [type=checkbox], [type=radio])");
