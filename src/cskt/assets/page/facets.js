// Filter controls made from the gallery's columns. They write filter text, and read it back where they can.

import { byId, debounce, element } from "./dom.js";
import { compose, parse } from "./filters.js";
import { columnTitle, count, plural, value as shownValue } from "./format.js";

const MOST_CHIPS = 12;
const NAME = { name: "image_id", kind: "text", values: [] };

const chip = (type, name, label, amount, checked, onchange) =>
  element("label", { class: "chip" },
    element("input", { type, name, value: label, checked, onchange,
      "aria-label": amount === null ? null : `${label}, ${plural(amount, "crop")}` }),
    element("span", {}, label, amount === null ? null : element("small", {}, count(amount))));

function chips(column, chosen, set) {
  const values = chosen.values ?? [];
  const known = column.values.map(({ value }) => value);
  const unknown = values.filter((value) => !known.includes(value)).map((value) => ({ value, count: 0 }));
  const toggled = (value) => (values.includes(value) ? values.filter((other) => other !== value) : [...values, value]);
  const made = [...column.values, ...unknown].map(({ value, count: amount }) =>
    chip("checkbox", column.name, String(value), amount, values.includes(value), () => set({ values: toggled(value) })));
  const rest = made.slice(MOST_CHIPS).filter((label) => !label.querySelector("input").checked);
  if (rest.length < 2) return element("div", { class: "chips" }, ...made);
  const more = element("button", { type: "button", class: "text-button", onclick: () => more.replaceWith(...rest),
    "aria-label": `${rest.length} more values of ${columnTitle(column.name)}` }, `${rest.length} more`);
  return element("div", { class: "chips" }, ...made.filter((label) => !rest.includes(label)), more);
}

function yesNo(column, chosen, set) {
  const amount = (wanted) => column.values.find(({ value }) => value === wanted)?.count ?? null;
  const choice = (label, is) =>
    chip("radio", column.name, label, is === undefined ? null : amount(is), chosen.is === is, () => set({ is }));
  return element("div", { class: "chips" }, choice("any", undefined), choice("yes", true), choice("no", false));
}

const contains = (column, chosen, set) =>
  element("input", { type: "text", value: chosen.contains ?? "", placeholder: "contains …", spellcheck: "false",
    "aria-label": `${columnTitle(column.name)} contains`,
    oninput: (event) => set({ contains: event.target.value.replaceAll("%", "") }) });

/** What a datetime-local field takes: minutes, or seconds where there are any. */
const fieldTime = (text) => (text ?? "").replace(" ", "T").replace(/^(\d{4}-\d\d-\d\d)$/, "$1T00:00").slice(0, 19);

function range(column, chosen, set) {
  const isTime = column.kind === "time";
  const known = (text) => (isTime ? fieldTime(text) : (text ?? ""));
  const field = (end, limit) => element("input", {
    type: isTime ? "datetime-local" : "number", step: isTime ? "1" : "any", value: known(chosen[end]),
    placeholder: limit === null ? "" : shownValue(limit, column.kind), title: limit === null ? null : shownValue(limit, column.kind),
    min: isTime ? known(column.minimum) : null, max: isTime ? known(column.maximum) : null,
    "aria-label": `${columnTitle(column.name)} ${end}${isTime ? ", UTC" : ""}`,
    oninput: (event) => set({ [end]: event.target.value }),
  });
  return element("div", { class: isTime ? "range times" : "range" },
    element("label", {}, element("span", {}, "from"), field("from", column.minimum)),
    element("label", {}, element("span", {}, "to"), field("to", column.maximum)));
}

function control(column, chosen, set) {
  if (column.kind === "boolean") return yesNo(column, chosen, set);
  if (column.kind === "text") return column.values.length ? chips(column, chosen, set) : contains(column, chosen, set);
  return range(column, chosen, set);
}

/** Wires the filters of a gallery: `onChange(where, isTyped)`. Returns {show, complain}. */
export function createFacets({ columns, onChange }) {
  const searchable = [...columns, NAME];
  const text = byId("where");
  let where = null;

  /** Change a part of what is chosen in a column. */
  function set(column, part) {
    const selection = parse(where, searchable) ?? {};
    selection[column.name] = { ...selection[column.name], ...part };
    where = compose(selection, searchable);
    text.value = where;
    const typed = !("values" in part || "is" in part);
    if (!typed) build(); // a field in which someone types stays as it is
    byId("filters-clear").hidden = where === "";
    onChange(where, typed);
  }

  function build() {
    const selection = parse(where, searchable);
    const focus = focused();
    byId("facets").replaceChildren(...(selection === null
      ? [element("p", { class: "quiet" }, "Written by hand; clear it to choose from lists again.")]
      : searchable.map((column) => {
        const title = column === NAME ? "file name" : columnTitle(column.name) + (column.kind === "time" ? " (UTC)" : "");
        return element("fieldset", { "data-column": column.name }, element("legend", {}, title),
          control(column, selection[column.name] ?? {}, (part) => set(column, part)));
      })));
    focus();
  }

  /** A way back to the control that has the focus, once it has been made anew. */
  function focused() {
    const active = document.activeElement;
    const fieldset = active.closest?.("#facets fieldset");
    if (!fieldset) return () => {};
    const place = [...fieldset.querySelectorAll("input, button")].indexOf(active);
    return () => byId("facets").querySelector(`[data-column="${fieldset.dataset.column}"]`)
      ?.querySelectorAll("input, button")[place]?.focus();
  }

  const written = debounce(() => {
    where = text.value.trim();
    build();
    byId("filters-clear").hidden = where === "";
    onChange(where, true);
  }, 400);
  text.addEventListener("input", written);
  byId("filters-clear").addEventListener("click", () => {
    written.cancel();
    onChange("", false);
  });

  return {
    /** Show the filter in force. */
    show(next) {
      if (next === where) return;
      written.cancel();
      where = next;
      text.value = where;
      byId("filters-clear").hidden = where === "";
      if (parse(where, searchable) === null) byId("where-details").open = true;
      build();
    },
    /** Say what is wrong with the filter's text; an empty line takes it back. */
    complain(line) {
      byId("where-note").textContent = line;
      text.setAttribute("aria-invalid", String(line !== ""));
      if (line) byId("where-details").open = true;
    },
  };
}
