// The page: state -> question -> answer -> grid. Each part lies in a module of its own; here they meet.

import { ApiError } from "./api.js";
import { createBox } from "./box.js";
import { byId, debounce, element, icon } from "./dom.js";
import { askToken, enter } from "./entrance.js";
import { createFacets } from "./facets.js";
import { compose } from "./filters.js";
import { columnTitle, count, plural } from "./format.js";
import { createGrid } from "./grid.js";
import { countAbove, createCutOff, trimmed } from "./histogram.js";
import { createMarks } from "./marks.js";
import { tellEmptyGallery, tellError, tellNoHit, tellNothing } from "./messages.js";
import { pictureOf } from "./picture.js";
import { createAnswers, questionOf } from "./question.js";
import { asks, createState, sameQuestion } from "./state.js";
import { createViewer } from "./viewer.js";

const TYPING_MILLISECONDS = 250;
const GROUPS = /(^|_)(track|tracklet|person|pid|identity)(_|$)/;

const say = (line) => {
  byId("status").textContent = line;
};

/** "37 crops · 0.02 s" in as many words as the answer deserves. */
function summary({ hits, found, isComplete }, groupBy) {
  if (!hits.length) return "No crop";
  const seconds = `${found.seconds.toFixed(2)} s`;
  const what = groupBy ? columnTitle(groupBy) : "crop";
  if (isComplete) return `${plural(hits.length, what)} · ${seconds}`;
  if (groupBy || !found.histogram) return `The best ${plural(hits.length, what)} · ${seconds}`;
  const { number, exact } = countAbove(found.histogram, found.cut_off ?? -1);
  const all = `${exact ? "" : "About "}${plural(Math.max(number, hits.length), what)}`;
  return `${all}, the best ${count(hits.length)} shown · ${seconds}`;
}

/** Everything, once the gallery is known. */
function begin(gallery) {
  const { columns } = gallery;
  const isEmpty = gallery.count === 0;
  const state = createState(moved);
  const sentence = () => state.now().text.trim();
  let lostPicture = ""; // what to say of it until the question changes

  const marks = createMarks({ galleryName: gallery.name, onChange: remark, onNote: say });
  const verdictOf = (imageId) => marks.of(sentence(), imageId);
  const mark = (hit, verdict) => {
    if (sentence()) marks.toggle(sentence(), hit.image_id, verdict);
    else say("A mark says whether a crop fits a sentence: type one first.");
  };
  const open = (hit) => state.change({ open: hit.image_id }, { replace: Boolean(state.now().open) });

  const box = createBox({ state, limits: gallery.limits, onSubmit: submit, onDown: enterGrid });
  const grid = createGrid({ columns, onOpen: open, onMark: mark, onLeaveUp: () => byId("sentence").focus(), verdictOf });
  const viewer = createViewer({
    columns, verdictOf, onMark: mark, onTurn: turn, onClose: () => state.closeView(),
    onLike: (imageId) => state.change({ like: imageId, picture: "", text: "", open: "" }),
    onGroup: showGroup,
  });
  const cutOff = createCutOff({ onInput: (value) => {
    grid.fade(value);
    state.change({ cutOff: value === -1 && gallery.cut_off === null ? null : value }, { run: "cut-off" });
  } });
  const facets = createFacets({
    columns, onChange: (where, isTyped) => state.change({ where }, { run: isTyped ? "where" : "" }),
  });
  const answers = createAnswers({ onWait: wait, onAnswer: showAnswer, onError: fail });
  const askLater = debounce(ask, TYPING_MILLISECONDS);
  const end = new IntersectionObserver((seen) => {
    if (seen.some((entry) => entry.isIntersecting)) answers.grow();
  }, { rootMargin: "600px" });

  function moved(now, previous) {
    showControls(now);
    if (!sameQuestion(now, previous)) {
      lostPicture = "";
      box.note("");
      if (!now.open) viewer.hide();
      if (asks(now)) askLater();
      else ask();
    } else if (now.open !== previous.open) {
      showView();
      if (!now.open) grid.focus(previous.open);
    }
  }

  function submit() {
    state.endRun();
    ask();
  }

  function ask() {
    askLater.cancel();
    const now = state.now();
    if (now.picture && !pictureOf(now.picture)) {
      state.change({ picture: "" }, { replace: true });
      lostPicture = "The picture of this search is not part of its link: drop it here again.";
      box.note(lostPicture);
      return;
    }
    const question = questionOf(now);
    if (question) answers.ask(question);
    else clear();
  }

  function clear() {
    answers.forget();
    grid.clear();
    tellNothing();
    byId("more").hidden = true;
    say("");
  }

  function wait() {
    tellNothing();
    grid.wait();
  }

  function fail(error) {
    if (!(error instanceof ApiError)) throw error;
    clear();
    if (error.status === 401) askToken(ask);
    else if (error.code === "bad_filter") {
      facets.complain(error.message);
      tellError(error, { label: "Clear the filter", act: () => state.change({ where: "" }) }, "The filter cannot be read");
    } else tellError(error, { label: "Try again", act: ask });
  }

  function showAnswer(error = null) {
    const { hits, found, isComplete } = answers;
    const held = found.histogram && trimmed(found.histogram);
    facets.complain("");
    box.note([lostPicture, ...found.warnings].filter(Boolean).join(" · "));
    cutOff.show(held, found.cut_off);
    if (hits.length) {
      tellNothing();
      grid.show(hits, held ? [held.edges[0], held.edges.at(-1)] : [0, hits[0].score]);
    } else {
      grid.clear();
      tellNoHit({ held, cutOff: found.cut_off ?? -1, where: state.now().where,
        lower: (value) => state.change({ cutOff: value }), clearFilter: () => state.change({ where: "" }) });
    }
    say(error ? error.message : summary(answers, state.now().groupBy));
    byId("more").hidden = isComplete;
    end.disconnect(); // observing anew tells at once whether the end is still in sight
    end.observe(byId("more"));
    showView();
  }

  function showView() {
    const { open: imageId, groupBy } = state.now();
    const place = answers.hits.findIndex((hit) => hit.image_id === imageId);
    if (!imageId) viewer.hide();
    else if (place >= 0) {
      const last = answers.isComplete && place === answers.hits.length - 1;
      viewer.show(answers.hits[place], { text: sentence(), first: place === 0, last, groupBy });
    } else if (answers.found) state.change({ open: "" }, { replace: true }); // a link to a crop that is no hit any more
  }

  async function turn(step) {
    const place = answers.hits.findIndex((hit) => hit.image_id === state.now().open) + step;
    if (place === answers.hits.length) await answers.grow();
    if (answers.hits[place] && state.now().open) open(answers.hits[place]);
  }

  function showGroup(name, value) {
    const chosen = typeof value === "string" ? { values: [value] } : { from: String(value), to: String(value) };
    state.change({ where: compose({ [name]: chosen }, columns), groupBy: "", open: "" });
  }

  function enterGrid() {
    if (answers.hits.length) grid.focus();
    return answers.hits.length > 0;
  }

  function remark() {
    grid.remark();
    viewer.remark();
  }

  function showControls(now) {
    box.show(now);
    facets.show(now.where);
    byId("group-by").value = now.groupBy;
    byId("cut-off-reset").hidden = now.cutOff === null;
    document.body.dataset.view = isEmpty ? "empty" : asks(now) ? "results" : "start";
    const about = now.text.trim() || (asks(now) ? "Like a picture" : "Search by sentence");
    document.title = `${about} · ${gallery.name} · cskt`;
  }

  byId("gallery-facts").textContent = `${gallery.name} · ${plural(gallery.count, "crop")} · ${gallery.model.name}`;
  byId("warning").hidden = !gallery.model.warning;
  byId("warning").textContent = gallery.model.warning ?? "";
  const groups = columns.filter(({ name, kind }) => (kind === "text" || kind === "number") && GROUPS.test(name));
  byId("group").hidden = groups.length === 0;
  byId("group-by").replaceChildren(element("option", { value: "" }, "nothing"),
    ...groups.map(({ name }) => element("option", { value: name }, columnTitle(name))));
  byId("group-by").addEventListener("change", (event) => state.change({ groupBy: event.target.value }));
  byId("cut-off-reset").textContent = gallery.cut_off === null ? "show all" : "calibrated";
  byId("cut-off-reset").addEventListener("click", () => state.change({ cutOff: null }));
  byId("more").addEventListener("click", () => answers.grow());
  byId("panel-open").addEventListener("click", () => {
    byId("panel-open").setAttribute("aria-expanded", String(byId("panel").classList.toggle("open")));
  });
  byId("share").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      say("Link copied: it contains the sentence, the filter and the threshold.");
    } catch {
      say("The address of this page is the link; copy it from the browser's bar.");
    }
  });
  addEventListener("online", () => {
    if (!answers.found) ask();
  });

  const early = byId("sentence").value; // typed while the gallery was being read
  showControls(state.now());
  if (early && !asks(state.now())) state.change({ text: early }, { run: "text" });
  if (isEmpty) tellEmptyGallery(gallery.name);
  else ask();
}

const ICONS = {
  theme: "theme", pick: "picture", clear: "close", "reference-remove": "close", close: "close", previous: "left", next: "right",
};
for (const [id, name] of Object.entries(ICONS)) byId(id).append(icon(name));
enter(begin);
