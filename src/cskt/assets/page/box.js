// The search box and what refines it: sentence, "but not", picture, weights, examples.

import { thumbnailAddress } from "./api.js";
import { byId, element, isTyping } from "./dom.js";
import { fileName } from "./format.js";
import { createPictureInput, pictureOf } from "./picture.js";
import { asks, EMPTY } from "./state.js";

const EXAMPLES = [
  "a man in a grey hooded jacket with a black backpack",
  "a woman in a red dress with long blond hair",
  "someone in a yellow t-shirt and blue jeans",
];

/** Wires the box to the state; `onSubmit()` on Enter, `onDown()` towards the crops. Returns {show, note}. */
export function createBox({ state, limits, onSubmit, onDown }) {
  const sentence = byId("sentence");
  const not = byId("not");
  const note = (line) => {
    byId("box-note").textContent = line;
  };

  for (const field of [sentence, not]) field.maxLength = limits.sentence_characters;
  sentence.addEventListener("input", () => state.change({ text: sentence.value.replace(/\s/g, " ") }, { run: "text" }));
  sentence.addEventListener("blur", () => state.endRun());
  sentence.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "/" && sentence.value === "") return event.preventDefault(); // it leads here from elsewhere
    const atEnd = sentence.selectionStart === sentence.value.length;
    if (event.key === "Enter") onSubmit();
    else if (event.key !== "ArrowDown" || !atEnd || !onDown()) return;
    event.preventDefault();
  });
  byId("search").addEventListener("submit", (event) => event.preventDefault());

  const showNot = (isShown) => {
    byId("not-field").hidden = !isShown;
    byId("not-open").hidden = isShown;
  };
  byId("not-open").addEventListener("click", () => {
    showNot(true);
    not.focus();
  });
  not.addEventListener("input", () => state.change({ not: not.value }, { run: "not" }));
  not.addEventListener("blur", () => showNot(not.value !== ""));

  byId("balance").addEventListener("input", (event) => state.change({ balance: Number(event.target.value) }, { run: "balance" }));
  byId("reference-remove").addEventListener("click", () => {
    state.change({ like: "", picture: "" });
    sentence.focus();
  });
  byId("clear").addEventListener("click", () => {
    state.change({ ...EMPTY });
    sentence.focus();
  });
  byId("examples").replaceChildren(...EXAMPLES.map((text) =>
    element("li", {}, element("button", { type: "button", onclick: () => {
      state.change({ text });
      sentence.focus();
    } }, text))));
  createPictureInput({
    mostBytes: limits.image_bytes,
    onPicture: (key) => state.change({ picture: key, like: "", open: "" }),
    onRefused: note,
  });
  addEventListener("keydown", (event) => {
    const isTaken = event.ctrlKey || event.metaKey || isTyping(event.target) || document.querySelector("dialog[open]");
    if (event.key !== "/" || isTaken) return;
    event.preventDefault();
    sentence.focus();
    sentence.select();
  });
  return {
    note,
    show(now) {
      const picture = pictureOf(now.picture);
      const hasReference = Boolean(picture || now.like);
      if (sentence.value !== now.text) sentence.value = now.text;
      if (not.value !== now.not) not.value = now.not;
      showNot(now.not !== "" || document.activeElement === not);
      byId("reference").hidden = !hasReference;
      if (hasReference) {
        byId("reference-image").src = picture?.url ?? thumbnailAddress(now.like);
        byId("reference-image").alt = `Crops like ${picture?.name ?? fileName(now.like)}`;
      }
      byId("balance-field").hidden = !(hasReference && now.text.trim());
      byId("balance").value = now.balance;
      byId("clear").hidden = !asks(now);
      byId("slash").hidden = asks(now);
    },
  };
}
