// State -> what is asked of the service, and the answer as it grows page by page.

import { search } from "./api.js";
import { pictureOf } from "./picture.js";

const PAGE_SIZE = 48;
const PATIENCE_MILLISECONDS = 150;

/** The body of POST /api/search, or null where nothing is asked. */
export function questionOf(state) {
  const picture = pictureOf(state.picture);
  const question = {};
  if (state.text.trim()) question.text = state.text.trim();
  if (picture) question.image = picture.base64;
  else if (state.like) question.like = state.like;
  if (!Object.keys(question).length) return null;
  if (question.text && (picture || state.like)) {
    // They add up to 2, as the service's own weights do.
    Object.assign(question, { text_weight: 2 * (1 - state.balance), image_weight: 2 * state.balance });
  }
  if (state.not.trim()) question.exclude = [state.not.trim()];
  if (state.where.trim()) question.where = state.where.trim();
  if (state.cutOff !== null) question.min_score = state.cutOff;
  if (state.groupBy) question.group_by = state.groupBy;
  return question;
}

/**
 * The answer to the latest question; earlier ones are dropped, whenever they arrive.
 *
 * `onWait()` follows when an answer takes long enough to be noticed, `onAnswer()` when it is there or has grown,
 * `onError(error)` when there is none.
 */
export function createAnswers({ onWait, onAnswer, onError }) {
  let asked = null;
  let control = new AbortController();
  let growing = false;
  const answers = { hits: [], found: null, isComplete: true };

  const drop = () => {
    control.abort();
    control = new AbortController();
    growing = false;
  };

  return Object.assign(answers, {
    /** Ask, unless this has just been answered. */
    async ask(question) {
      if (answers.found && JSON.stringify(question) === JSON.stringify(asked)) {
        drop();
        onAnswer();
        return;
      }
      drop();
      const { signal } = control;
      const waiting = setTimeout(onWait, PATIENCE_MILLISECONDS);
      signal.addEventListener("abort", () => clearTimeout(waiting));
      try {
        const found = await search({ ...question, k: PAGE_SIZE, histogram: true }, signal);
        clearTimeout(waiting);
        asked = question;
        Object.assign(answers, { found, hits: found.hits, isComplete: found.hits.length < PAGE_SIZE });
        onAnswer();
      } catch (error) {
        clearTimeout(waiting);
        if (error.name !== "AbortError") onError(error);
      }
    },
    /** The next page of the answer that is shown. */
    async grow() {
      if (answers.isComplete || growing || !answers.found) return;
      growing = true;
      const { signal } = control;
      try {
        const { hits } = await search({ ...asked, k: PAGE_SIZE, offset: answers.hits.length }, signal);
        const known = new Set(answers.hits.map((hit) => hit.image_id)); // crops may have been added meanwhile
        answers.hits = [...answers.hits, ...hits.filter((hit) => !known.has(hit.image_id))];
        answers.isComplete = hits.length < PAGE_SIZE;
        growing = false;
        onAnswer();
      } catch (error) {
        if (error.name === "AbortError") return;
        growing = false;
        answers.isComplete = true; // the page shows what it has; a new question begins anew
        onAnswer(error);
      }
    },
    forget() {
      drop();
      Object.assign(answers, { hits: [], found: null, isComplete: true });
    },
  });
}
