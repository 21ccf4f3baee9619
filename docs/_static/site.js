// A page opened from a file may not read other files: the search then lists its results without excerpts.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// Excerpts of search results show formulas in plain characters; most names in TeX are names in HTML too.
addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const textOf = Search.htmlToText;
  const readable = (found, tex) => tex.replace(/\\(log|exp|cos|sin|arccos|max|min)\b/g, "$1").replace(/\\([A-Za-z]+)/g, "&$1;").replace(/[\\{}]/g, "");
  Search.htmlToText = (page, anchor) => {
    const text = textOf(page.replace(/\\\[.*?\\\]/gs, "…").replace(/\\\((.*?)\\\)/gs, readable), anchor);
    return text.replace(/&\w+;/g, "").replace(/\s+/g, " ");
  };
});

// What scrolls can be reached by the keyboard, and nothing else is a stop on the way.
function reachScrolling() {
  for (const box of document.querySelectorAll("pre, .table-wrapper, .cell_output .text_html, mjx-container")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
for (const change of ["load", "resize", "toggle"]) addEventListener(change, reachScrolling, true);

// The arrow keys move within a sound that is played, and do not turn to another page.
addEventListener("DOMContentLoaded", () => {
  for (const player of document.querySelectorAll("audio")) player.addEventListener("keydown", event => event.stopPropagation());
});
