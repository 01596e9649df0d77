// The table: sorted by a click on a heading, filtered by words, saved as CSV; its boxes choose runs.

// Columns shown once, above the table, if equal in all rows.
const ONCE = new Set(["data", "model", "dense_baseline", "dense_params", "dense_macs", "latency_device", "threads", "batch", "epochs", "start", "lr", "train_batch", "split"]);
const MAX_ROWS = 500; // more would make the page slow
const table = { cells: [], final: 0, sort: null, descending: false, levels: false, words: [] };

const valueOf = (row, column) => (column.value ? column.value(row) : row[column.index]);
const taskOf = (row) => data.tasks[row[data.columns.length]];

// The accuracy of a row against the mean of the reference.
function difference(row) {
  const [of, sparsity, accuracy] = ["of", "sparsity", "accuracy"].map((name) => row[table.places[name]]);
  const point = referencePoint(taskOf(row), of, sparsity);
  return point ? accuracy - point.y.accuracy[0] : null;
}

// The text of a cell; the unit is in the heading.
function formatCell(row, column) {
  const value = valueOf(row, column);
  if (value === null || value === "") return "";
  if (column.text) return value;
  const scaled = column.unit === "%" || column.unit === "points" ? value * 100 : value;
  if (column.digits === null) return String(scaled);
  const format = { minimumFractionDigits: column.digits, maximumFractionDigits: column.digits, signDisplay: column.value ? "exceptZero" : "auto" };
  return column.name === "seed" ? String(scaled) : scaled.toLocaleString("en", format);
}

// Empty cells come last in both directions; the sort is stable.
function compare(column) {
  const sign = table.descending ? -1 : 1;
  return (one, other) => {
    const [a, b] = [valueOf(one, column), valueOf(other, column)];
    const [noA, noB] = [a === null || a === "", b === null || b === ""];
    if (noA || noB) return Number(noA) - Number(noB);
    return a < b ? -sign : a > b ? sign : 0;
  };
}

function matches(row) {
  if (!table.levels && row[table.final] !== "yes") return false;
  if (!table.words.length) return true;
  const line = [...table.cells.map((column) => formatCell(row, column)), ...data.columns
    .map((column, index) => (column.text ? row[index] : ""))].join(" ").toLowerCase();
  return table.words.every((word) => line.includes(word));
}

function drawTable() {
  const rows = data.rows.filter((row) => matches(row));
  if (table.sort !== null) rows.sort(compare(table.cells.find((column) => column.name === table.sort)));
  const body = document.createDocumentFragment();
  for (const row of rows.slice(0, MAX_ROWS)) {
    const line = element("tr", null, row[table.final] === "yes" ? {} : { class: "level" });
    line.append(element("td", null));
    if (table.runs.has(row)) line.firstChild.append(runBox(table.runs.get(row)));
    for (const column of table.cells) {
      line.append(element("td", formatCell(row, column), column.text ? {} : { class: "number" }));
    }
    body.append(line);
  }
  byId("table").tBodies[0].replaceChildren(body);
  const names = [...new Set(data.tasks.map((task) => referenceOf(task).name))].join("; ");
  byId("reference-note").textContent = `Against reference: top-1 minus the mean of ${names}, at the same sparsity if that is a method.`;
  const first = rows.length > MAX_ROWS ? `, first ${MAX_ROWS} shown` : "";
  byId("count").textContent = `${rows.length} of ${data.rows.length} rows${first}`;
}

function drawHead() {
  const cells = table.cells.map((column) => {
    const order = table.sort !== column.name ? "none" : table.descending ? "descending" : "ascending";
    const cell = element("th", null, { scope: "col", "aria-sort": order, "data-name": column.name });
    if (!column.text) cell.className = "number";
    const button = element("button", column.heading, { type: "button" });
    button.addEventListener("click", () => {
      table.descending = table.sort === column.name && !table.descending;
      table.sort = column.name;
      for (const one of byId("table").tHead.querySelectorAll("[aria-sort]")) one.setAttribute("aria-sort", "none");
      cell.setAttribute("aria-sort", table.descending ? "descending" : "ascending");
      drawTable();
    });
    cell.append(button);
    if (column.unit) cell.append(element("span", column.unit, { class: "unit" }));
    return cell;
  });
  byId("table").tHead.rows[0].replaceChildren(element("th", "Show", { scope: "col" }), ...cells);
}

function csvText() {
  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
  const line = (row) => data.columns
    .map((column, index) => valueOf(row, { ...column, index }) ?? "")
    .map((value) => quoted(String(value))).join(",");
  return [data.columns.map((column) => column.name).join(","), ...data.rows.map(line), ""].join("\n");
}

// Split the columns into those of the table, and those that are equal in all rows.
function splitColumns() {
  const columns = data.columns.map((column, index) => ({ ...column, index }));
  const all = (column, test) => data.rows.every((row) => test(row[column.index]));
  const same = (column) => ONCE.has(column.name) && all(column, (value) => value === data.rows[0][column.index]);
  const shown = columns.filter((column) => column.heading && !all(column, (value) => value === null));
  table.places = Object.fromEntries(columns.map((column) => [column.name, column.index]));
  table.cells = shown.filter((column) => !same(column));
  const after = table.cells.findIndex((column) => column.name === "accuracy_drop");
  table.cells.splice(after + 1, 0, {
    name: "difference", heading: "Against reference", unit: "points", digits: 2, value: difference,
  });
  const words = shown.filter(same).map((column) => (
    `${column.heading}${column.unit ? ` (${column.unit})` : ""} ${formatCell(data.rows[0], column)}`));
  if (words.length) byId("constant").textContent = `In all rows: ${words.join(" · ")}`;
}

function startTable() {
  table.final = data.columns.findIndex((column) => column.name === "final");
  table.runs = new Map(data.rows.filter((row) => row[table.final] === "yes").map((row, i) => [row, i]));
  splitColumns();
  drawHead();
  drawTable();
  byId("filter").addEventListener("input", (event) => {
    table.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    drawTable();
  });
  byId("table-levels").addEventListener("change", (event) => {
    table.levels = event.target.checked;
    drawTable();
  });
  byId("download").href = URL.createObjectURL(new Blob([csvText()], { type: "text/csv" }));
}
