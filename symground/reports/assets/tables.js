// Tables: a button in each header sorts by its column, and long tables have a field that filters their rows.
document.querySelectorAll(".sheet table").forEach((table) => {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  const text = (row, column) => row.cells[column].textContent.trim();
  // The first number of a cell, so that intervals, deviations and stars after it do not matter; NaN for a dash or words.
  const number = (shown) => {
    if (shown === "never") return Infinity;
    const found = /^([<≥≤]?)\s*\[?([+−-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)/i.exec(shown);
    return found ? Number(found[2].replace(/,/g, "").replace("−", "-")) - (found[1] === "<" ? 1e-9 : 0) : NaN;
  };
  function sort(column, down) {
    const numbers = rows.map((row) => number(text(row, column)));
    const isNumeric = numbers.filter((x) => !Number.isNaN(x)).length * 2 > rows.length;
    const order = rows.map((_, at) => at).sort((a, b) => {
      if (!isNumeric) return (down ? -1 : 1) * text(rows[a], column).localeCompare(text(rows[b], column), "en", { numeric: true });
      if (Number.isNaN(numbers[a]) || Number.isNaN(numbers[b])) return Number.isNaN(numbers[a]) - Number.isNaN(numbers[b]);
      return (down ? -1 : 1) * (numbers[a] === numbers[b] ? 0 : numbers[a] - numbers[b]);
    });
    body.append(...order.map((at) => rows[at]));
    headers.forEach((header, at) => header.setAttribute("aria-sort", at !== column ? "none" : down ? "descending" : "ascending"));
  }
  headers.forEach((header, column) => {
    const button = element("button", header.textContent, { type: "button" });
    button.addEventListener("click", () => sort(column, header.getAttribute("aria-sort") === "ascending"));
    header.replaceChildren(button);
    header.setAttribute("aria-sort", "none");
  });
  const folded = table.closest("details");
  if (!folded) return;
  const label = element("label", "Rows with all of the words ", { class: "filter" });
  const field = element("input", undefined, { type: "search" });
  const left = element("output", "");
  label.append(field, " ", left);
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (row, word) => [...row.cells].some((cell) => cell.textContent.toLowerCase().includes(word));
    rows.forEach((row) => { row.hidden = !wanted.every((word) => has(row, word)); });
    left.textContent = wanted.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
  });
  folded.querySelector("summary").after(label);
});
