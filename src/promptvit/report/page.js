"use strict";
// The page is complete without this: it sorts tables, switches the theme and opens what is folded for printing.
const button = document.getElementById("theme");
const prefers = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (document.documentElement.dataset.theme ?? (prefers.matches ? "dark" : "light")) === "dark";
const label = () => { button.textContent = dark() ? "Light" : "Dark"; button.ariaLabel = `${button.textContent} theme`; };
button.hidden = false;
button.onclick = () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; label(); };
prefers.onchange = label;
label();

const value = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
};
const order = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b
  : typeof a === typeof b ? a.localeCompare(b, "en", { numeric: true })
  : typeof a === "number" ? -1 : 1;
for (const table of document.querySelectorAll("table[data-sorts]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sorter = document.createElement("button");
    sorter.type = "button";
    sorter.append(...head.childNodes);
    head.append(sorter);
    sorter.onclick = () => {
      const body = table.tBodies[0];
      const first = body.querySelector(`:scope > tr > :nth-child(${column + 1})[data-value]`) ? "descending" : "ascending";
      const turned = { ascending: "descending", descending: "ascending" };
      const direction = turned[head.getAttribute("aria-sort")] ?? first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      body.append(...[...body.rows].sort((a, b) => sign * order(value(a, column), value(b, column))));
    };
  });
}

const folds = () => document.querySelectorAll("details:not([open])");
let opened = [];
addEventListener("beforeprint", () => { opened = [...folds()]; opened.forEach((fold) => { fold.open = true; }); });
addEventListener("afterprint", () => { opened.forEach((fold) => { fold.open = false; }); opened = []; });
