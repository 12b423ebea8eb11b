// Sorts a table when a heading's button is pressed. Numbers are compared by data-value; cells without one stay last.
(() => {
  "use strict";
  const collator = new Intl.Collator(document.documentElement.lang, { numeric: true });

  function compare(one, other, isNumber) {
    if (!isNumber) return collator.compare(one.textContent.trim(), other.textContent.trim());
    return Number(one.dataset.value) - Number(other.dataset.value);
  }

  function sort(table, heading) {
    const column = heading.cellIndex;
    const isNumber = heading.classList.contains("number");
    const now = heading.getAttribute("aria-sort");
    // Numbers start with the largest, names with A.
    const first = isNumber ? "descending" : "ascending";
    const other = isNumber ? "ascending" : "descending";
    const order = now === first ? other : first;
    const sign = order === "ascending" ? 1 : -1;
    const isEmpty = (row) => isNumber && !("value" in row.cells[column].dataset);
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    rows.sort((a, b) => {
      if (isEmpty(a) || isEmpty(b)) return Number(isEmpty(a)) - Number(isEmpty(b));
      return sign * compare(a.cells[column], b.cells[column], isNumber);
    });
    body.append(...rows);
    for (const cell of heading.parentElement.cells) cell.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", order);
  }

  for (const button of document.querySelectorAll("table th button")) {
    button.addEventListener("click", () => sort(button.closest("table"), button.closest("th")));
  }
})();
