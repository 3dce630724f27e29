// Sort any long table by a tap on its heading, and filter tables and lists as one types. No library, no network.
"use strict";

const finder = (label, filter) => {
  const input = document.createElement("input");
  Object.assign(input, { type: "search", className: "find", placeholder: label, ariaLabel: label });
  const count = document.createElement("output");
  const box = document.createElement("p");
  box.append(input, count);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    count.textContent = words.length ? `${filter(words)} found` : (filter([]), "");
  });
  return box;
};

const show = (items) => (words) => {
  const starts = words.map((word) => new RegExp(`(?<![a-z])${word.replace(/[^\w]/g, "\\$&")}`));
  let found = 0;
  for (const item of items) {
    const text = item.textContent.toLowerCase();
    item.hidden = !starts.every((start) => start.test(text));
    found += !item.hidden;
  }
  return found;
};

const number = (text) => parseFloat(text.replace("−", "-"));

const sortable = (table) => {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    [...body.rows].forEach((row) => row.cells[column].setAttribute("data-head", button.textContent));
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.cells[column].textContent.trim();
      const numbers = [...body.rows].every((row) => !isNaN(number(text(row))));
      const order = numbers
        ? (a, b) => number(text(a)) - number(text(b))
        : (a, b) => text(a).localeCompare(text(b), "en", { numeric: true });
      body.append(...[...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b))));
    });
  });
};

for (const table of document.querySelectorAll(".md-content table:not([class])")) {
  if (!table.tBodies[0] || table.tBodies[0].rows.length < 8 || table.closest(".doc")) continue;
  sortable(table);
  table.before(finder("Filter the rows by words", show([...table.tBodies[0].rows])));
}
for (const place of document.querySelectorAll("[data-finder]")) {
  const items = [...document.querySelectorAll(place.dataset.finder)];
  place.append(finder(place.dataset.label, show(items)));
}
