"use strict";
// What the page does by itself: fits charts to the window, carries choices from chart to chart, sorts and filters states.

const NARROW = 640; // pixels; panels stand one below another
const GAP = 20; // pixels that Vega leaves between panels
const charts = JSON.parse(document.getElementById("charts").textContent);
const views = new Map(); // figure → its Vega view
const chosen = new Map(); // parameter → the value that a menu was set to

/** The specification at a width: panels side by side or one below another, legends likewise; narrower by `excess` pixels. */
function fitted(chart, width, excess) {
  const spec = structuredClone(chart.spec);
  const narrow = width < NARROW;
  spec.config.legend.layout = { bottom: { direction: narrow ? "vertical" : "horizontal", anchor: "start" } };
  spec.config.legend.columns = width < 480 ? 2 : narrow ? 3 : 7;
  const columns = narrow ? 1 : spec.columns ?? 1;
  const panels = spec.concat ?? spec.vconcat ?? [spec];
  if (spec.concat) spec.columns = columns;
  for (const panel of panels) panel.width = Math.floor((width - GAP * (columns - 1) - excess) / columns) - chart.margin;
  for (const parameter of spec.params ?? []) {
    if (chosen.has(parameter.name)) parameter.value = chosen.get(parameter.name);
  }
  return spec;
}

async function draw(name) {
  const chart = charts[name];
  const place = document.querySelector(`#${CSS.escape(name)} .chart`);
  const width = place.clientWidth;
  const embed = (excess) =>
    vegaEmbed(place, fitted(chart, width, excess), {
      renderer: "svg",
      actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
      downloadFileName: name,
    });
  let result = await embed(0);
  // Names at an axis take more room than expected, or less: draw again to fit, instead of shrinking the letters.
  const excess = place.querySelector("svg").width.baseVal.value - width;
  if (Math.abs(excess) > 4) {
    result.view.finalize();
    result = await embed(Math.ceil(excess) + 1);
  }
  views.get(name)?.finalize();
  views.set(name, result.view);
  for (const toggle of chart.toggles) result.view.addSignalListener(toggle, () => share(name, toggle));
}

/** What one chart's legend shows, the other charts with that legend show too. */
function share(from, toggle) {
  const rows = (view) => view.data(`${toggle}_store`).map(({ fields, values }) => ({ unit: "", fields, values }));
  const wanted = rows(views.get(from));
  const key = (list) => JSON.stringify(list.map((row) => row.values));
  for (const [name, view] of views) {
    if (name === from || !charts[name].toggles.includes(toggle) || key(rows(view)) === key(wanted)) continue;
    view.data(`${toggle}_store`, wanted.map((row) => ({ ...row }))).run();
  }
}

for (const menu of document.querySelectorAll("select[data-parameter]")) {
  menu.addEventListener("change", () => {
    const parameter = menu.dataset.parameter;
    chosen.set(parameter, menu.value);
    for (const other of document.querySelectorAll("select[data-parameter]")) {
      if (other.dataset.parameter === parameter) other.value = menu.value;
    }
    for (const [name, view] of views) {
      if (charts[name].choices.includes(parameter)) view.signal(parameter, menu.value).run();
    }
  });
}

const scroller = document.querySelector("#states .scroll");
const hint = document.querySelector("#states .scroll-hint");

/** Say that the table goes on at the right, where it does. */
function tell() {
  hint.classList.toggle("needed", scroller.scrollWidth > scroller.clientWidth + 1);
}

let width = document.documentElement.clientWidth;
let waiting;
window.addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    if (document.documentElement.clientWidth === width) return; // a phone's address bar came or went
    width = document.documentElement.clientWidth;
    Object.keys(charts).forEach(draw);
    tell();
  }, 150);
});

const table = document.querySelector("#states table");
const body = table.tBodies[0];
const filter = document.getElementById("filter");
const last = document.getElementById("last");

function show() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word)) || (last?.checked && !row.classList.contains("last"));
    count += !row.hidden;
  }
  document.getElementById("count").textContent = `${count} of ${body.rows.length}`;
}

function sort(header) {
  const column = header.cellIndex;
  const descending = header.ariaSort === "ascending";
  for (const each of table.tHead.rows[0].cells) each.ariaSort = "none";
  header.ariaSort = descending ? "descending" : "ascending";
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => {
    if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // what is missing comes last, either way
    const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    return descending ? -order : order;
  };
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
}

filter.addEventListener("input", show);
last?.addEventListener("change", show);
for (const header of table.tHead.rows[0].cells) header.querySelector("button").addEventListener("click", () => sort(header));
show();
tell();
Object.keys(charts).forEach(draw);
