"use strict";
// Filter, search, theme and print. Without this the page still holds everything but the drawing of the graph.

function filterFindings() {
  const shown = new Set(
    [...document.querySelectorAll(".filter[aria-pressed='true']")].map((b) => b.dataset.severity));
  const words = document.querySelector("#search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const findings = [...document.querySelectorAll(".finding")];
  const links = [...document.querySelectorAll(".contents li")];
  let count = 0;
  findings.forEach((finding, place) => {
    const text = finding.textContent.toLowerCase();
    const fits = shown.has(finding.dataset.severity) && words.every((word) => text.includes(word));
    finding.hidden = !fits;
    if (links[place]) links[place].hidden = !fits;
    count += fits;
  });
  const status = document.querySelector("#count");
  if (status) status.textContent = count === findings.length ? "" : `${count} of ${findings.length} findings shown`;
}

for (const button of document.querySelectorAll(".filter")) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    filterFindings();
  });
}
document.querySelector("#search")?.addEventListener("input", filterFindings);
document.addEventListener("keydown", (event) => {
  const field = document.querySelector("#search");
  if (event.key === "/" && field && document.activeElement !== field) {
    event.preventDefault();
    field.focus();
  } else if (event.key === "Escape" && document.activeElement === field) {
    field.value = "";
    filterFindings();
    field.blur();
  }
});
// A link to a finding that is folded opens it.
function openLinked() {
  const fold = document.getElementById(location.hash.slice(1))?.querySelector(":scope > details");
  if (fold) fold.open = true;
}
addEventListener("hashchange", openLinked);
openLinked();
document.querySelector("#theme")?.addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});

// What scrolls sideways can be reached, and scrolled, by keys; what fits is no stop.
function markScrolling() {
  for (const each of document.querySelectorAll(".wide")) {
    const scrolls = each.scrollWidth > each.clientWidth + 1;
    const name = each.querySelector("svg") ? "a picture, scrolls sideways" : "a table, scrolls sideways";
    for (const [key, value] of [["tabindex", 0], ["role", "region"], ["aria-label", name]]) {
      if (scrolls) each.setAttribute(key, value); else each.removeAttribute(key);
    }
  }
}
addEventListener("resize", markScrolling);
addEventListener("toggle", markScrolling, true);
markScrolling();

// On paper nothing can be opened, and a dark page is a waste.
let before = null;
addEventListener("beforeprint", () => {
  const closed = [...document.querySelectorAll("details:not([open])")];
  before = { closed, theme: document.documentElement.dataset.theme };
  for (const each of closed) each.open = true;
  document.documentElement.dataset.theme = "light";
});
addEventListener("afterprint", () => {
  if (!before) return;
  for (const each of before.closed) each.open = false;
  if (before.theme) document.documentElement.dataset.theme = before.theme;
  else delete document.documentElement.dataset.theme;
});
