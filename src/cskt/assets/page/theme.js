// Light, dark or as the system; a classic script, so that the page never flashes in the wrong colours.
"use strict";
{
  const THEMES = ["system", "light", "dark"];
  const NAMES = { system: "as the system", light: "light", dark: "dark" };
  const KEY = "cskt.theme";

  const read = () => {
    try {
      return localStorage.getItem(KEY) ?? "system";
    } catch {
      return "system"; // a browser that refuses storage still shows the page
    }
  };
  const show = (theme) => {
    document.documentElement.dataset.theme = THEMES.includes(theme) ? theme : "system";
  };

  show(read());
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => {
      const name = NAMES[document.documentElement.dataset.theme];
      button.setAttribute("aria-label", `Colours: ${name}`);
      button.title = `Colours: ${name}`;
    };
    button.addEventListener("click", () => {
      const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
      show(next);
      label();
      try {
        localStorage.setItem(KEY, next);
      } catch {
        // it lasts as long as the page
      }
    });
    label();
  });
}
