// A picture from outside to search by: chosen, dropped or pasted. It stays in this tab; links cannot carry it.

import { byId } from "./dom.js";

const pictures = new Map();
let taken = 0;

/** {name, base64, url} of a picture that this tab holds, by its key in the state. */
export const pictureOf = (key) => pictures.get(key);

const base64Of = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });

/** Keep a file; returns its key. Throws an Error with one line for people. */
async function keep(file, mostBytes) {
  if (file.size > mostBytes) {
    throw new Error(`${file.name} has ${Math.ceil(file.size / 1e6)} MB; the gallery takes ${Math.floor(mostBytes / 1e6)} MB.`);
  }
  const url = URL.createObjectURL(file);
  try {
    const probe = new Image();
    probe.src = url;
    await probe.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error(`${file.name || "That"} is not a picture that can be read.`);
  }
  taken += 1;
  // The time keeps a key from naming another picture after the page was loaded anew.
  const key = `${Date.now().toString(36)}-${taken}`;
  pictures.set(key, { name: file.name || "pasted picture", base64: await base64Of(file), url });
  return key;
}

const fileIn = (transfer) => [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? transfer?.files?.[0];

/** Wires choosing, dropping and pasting: `onPicture(key)`, `onRefused(line)`. */
export function createPictureInput({ mostBytes, onPicture, onRefused }) {
  async function take(file) {
    try {
      onPicture(await keep(file, mostBytes));
    } catch (error) {
      onRefused(error.message);
    }
  }

  const chooser = byId("file");
  for (const id of ["pick", "pick-too"]) byId(id).addEventListener("click", () => chooser.click());
  chooser.addEventListener("change", () => {
    if (chooser.files[0]) take(chooser.files[0]);
    chooser.value = "";
  });

  const veil = byId("veil");
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    veil.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) veil.hidden = true;
  });
  addEventListener("drop", (event) => {
    veil.hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    const file = fileIn(event.dataTransfer);
    if (file) take(file);
  });
  addEventListener("paste", (event) => {
    const file = fileIn(event.clipboardData);
    if (!file || event.clipboardData.getData("text/plain")) return; // text with a picture of it, from an office program
    event.preventDefault();
    take(file);
  });
}
