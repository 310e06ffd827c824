"use strict";
// The table of runs, which is whole without this: sorted by a click on a heading, filtered by what is typed below it.
const table = document.getElementById("runs"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
const rows = [...body.rows], shown = document.getElementById("shown");
const filters = heads.map(() => ""), signs = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b };
const raw = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;
let words = "";

function meets(row, i, text) {
  const match = /^(<=|>=|<|>|=)?\s*(.*)$/.exec(text), value = raw(row, i);
  if (!match[2]) return true;
  if (match[1] === "=") return value === match[2] || (value !== "" && Number(value) === Number(match[2]));
  if (match[1]) return value !== "" && signs[match[1]](Number(value), Number(match[2]));
  return value.toLowerCase().includes(match[2].toLowerCase());
}

function filter() {
  let count = 0;
  for (const row of rows) {
    const all = row.textContent.toLowerCase();
    row.hidden = !(filters.every((text, i) => meets(row, i, text)) && words.split(/\s+/).every((word) => all.includes(word)));
    count += !row.hidden;
  }
  shown.textContent = `${count} of ${rows.length} runs shown`;
}

function sort(i) {
  const up = heads[i].getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[i].setAttribute("aria-sort", up ? "ascending" : "descending");
  for (const head of heads) head.querySelector("span").textContent = head === heads[i] ? (up ? " \u25B2" : " \u25BC") : "";
  const key = (row) => { const value = raw(row, i); return [value === "", value === "" || isNaN(value) ? value : Number(value)]; };
  const before = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
  const order = rows.map((row, at) => [...key(row), at, row]);
  order.sort((a, b) => a[0] - b[0] || sign * before(a[1], b[1]) || a[2] - b[2]);  // what is not there comes last
  body.append(...order.map((entry) => entry[3]));
}

heads.forEach((head, i) => {
  const button = document.createElement("button"), mark = document.createElement("span"), input = document.createElement("input");
  button.append(...head.childNodes, mark);
  button.type = "button";
  button.onclick = () => sort(i);
  input.setAttribute("aria-label", `only runs whose ${head.textContent || button.textContent} is`);
  input.placeholder = table.querySelector(`tbody td.number:nth-child(${i + 1})`) ? "> 0.1" : "";
  input.oninput = () => { filters[i] = input.value.trim(); filter(); };
  head.append(button, input);
});
const find = document.createElement("input");
find.type = "search"; find.className = "find"; find.placeholder = "runs with these words"; find.setAttribute("aria-label", find.placeholder);
find.oninput = () => { words = find.value.trim().toLowerCase(); filter(); };
shown.before(find);
filter();

// A cell of a diagram leads to the first of its runs; all of them are marked.
document.addEventListener("click", (event) => {
  const cell = event.target.closest("svg a");
  if (!cell) return;
  const address = cell.getAttribute("href"), runs = (cell.dataset.runs ?? address.slice(1)).split(" ");
  for (const row of rows) row.classList.toggle("chosen", runs.includes(row.id));
  for (const row of rows) if (row.classList.contains("chosen")) row.hidden = false;
});
