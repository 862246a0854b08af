// The way in: what the gallery is, and the token where it asks for one.

import { ApiError, openSession, readGallery } from "./api.js";
import { byId } from "./dom.js";
import { tellError, tellNothing } from "./messages.js";

/** Ask for the token, then go on with `next`. */
export function askToken(next) {
  const dialog = byId("token");
  const note = byId("token-note");
  byId("token-form").onsubmit = async (event) => {
    event.preventDefault();
    try {
      await openSession(byId("token-value").value);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      note.textContent = error.message;
      return;
    }
    byId("token-value").value = "";
    note.textContent = "";
    dialog.close();
    next();
  };
  if (!dialog.open) dialog.showModal();
}

/** Read the gallery, with the token or a second try where needed, and begin. */
export async function enter(begin) {
  let gallery;
  try {
    gallery = await readGallery();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    document.body.dataset.view = "empty";
    if (error.status === 401) askToken(() => enter(begin));
    else tellError(error, { label: "Try again", act: () => enter(begin) });
    return;
  }
  tellNothing();
  begin(gallery);
}
