"use strict";
(() => {
  const { figures, gallery, model_names: modelNames } = JSON.parse(
    document.getElementById("page-data").textContent,
  );
  const byId = (id) => document.getElementById(id);
  const PICTURES_AT_ONCE = 24;
  const TINY_PIXELS = 64; // pictures below are enlarged pixel by pixel, so that nothing is made up

  // Charts: their colours of text, grid and heat come from the style sheet.
  const SETTINGS = { displayModeBar: false, responsive: true, displaylogo: false };

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    const clear = "rgba(0,0,0,0)";
    const axis = {
      gridcolor: value("--grid"), linecolor: value("--line"), zerolinecolor: value("--grid"),
      automargin: true, fixedrange: true, title: { standoff: 10, font: { size: 13 } },
    };
    // Steep at its low end: a mistake of five percent is to be seen.
    const heat = [[0, value("--raised")], [0.2, value("--heat-low")], [1, value("--heat")]];
    return {
      data: { heatmap: [{ colorscale: heat, textfont: { color: value("--text") }, type: "heatmap" }] },
      layout: {
        font: { family: value("--font"), size: 13, color: value("--text") },
        paper_bgcolor: clear, plot_bgcolor: clear, dragmode: false,
        margin: { l: 10, r: 14, t: 40, b: 10 },
        legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom" },
        hoverlabel: {
          bgcolor: value("--raised"), bordercolor: value("--line"),
          font: { color: value("--text"), family: value("--font") },
        },
        shapedefaults: { line: { color: value("--quiet"), width: 1, dash: "dot" }, layer: "below" },
        xaxis: axis, yaxis: { ...axis, ticklabelstandoff: 6 },
      },
    };
  }

  function draw(name, template) {
    const { data, layout } = figures[name];
    return Plotly.react(byId(name), data, { ...layout, template }, SETTINGS);
  }

  async function drawAll() {
    const template = theme();
    for (const { id } of document.querySelectorAll(".plot")) {
      await draw(id, template);
      await new Promise((resolve) => { setTimeout(resolve); }); // a click need not wait for all
    }
  }

  for (const select of document.querySelectorAll("select[data-chart]")) {
    select.addEventListener("change", () => {
      for (const trace of figures[select.dataset.chart].data) {
        trace.visible = !trace.meta || !select.value || trace.meta.class === select.value;
      }
      draw(select.dataset.chart, theme());
    });
  }

  // Tables: sorted by a click on a header, cut down by a search.
  function sortKey(cell) {
    const text = cell.textContent.trim();
    const number = Number.parseFloat(text.replaceAll(",", "").replace("−", "-"));
    return Number.isNaN(number) ? text : number;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const headers = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const up = header.getAttribute("aria-sort") !== "ascending";
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", up ? "ascending" : "descending");
        const words = header.classList.contains("words");
        const rows = [...table.tBodies[0].rows].map((row) => {
          const cell = row.cells[column];
          return [words ? cell.textContent : sortKey(cell), row];
        });
        rows.sort(([a], [b]) =>
          (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)))
          * (up ? 1 : -1));
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }

  for (const input of document.querySelectorAll("input[data-table]")) {
    const rows = [...byId(input.dataset.table).querySelectorAll("tbody tr")];
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      for (const row of rows) {
        row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      }
      const found = rows.filter((row) => !row.hidden).length;
      byId(`found-${input.dataset.table}`).textContent = `${found} of ${rows.length} rows`;
    });
  }

  // The gallery: pictures are made when they are to be seen, two dozen at a time.
  const filters = Object.fromEntries(
    ["model", "result", "kind", "label", "predicted", "explained"].map((name) =>
      [name, byId(`filter-${name}`)]),
  );
  const list = byId("gallery");
  const more = byId("more");
  let matching = [];

  function fillClasses(name) {
    const classes = [...new Set(gallery.entries.map((entry) => entry[name]))];
    classes.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    for (const value of classes) filters[name].append(new Option(value, value));
  }

  function matches(entry) {
    const { model, result, kind, label, predicted, explained } = filters;
    return (!model.value || entry.model === model.value)
      && (!result.value || entry.correct === (result.value === "right"))
      && (!kind.value || entry.kinds.includes(kind.value))
      && (!label.value || entry.label === label.value)
      && (!predicted.value || entry.predicted === predicted.value)
      && (!explained.checked || entry.explanation !== null);
  }

  const percent = (fraction) => `${(100 * fraction).toFixed(1)}\u00a0%`;

  function paragraph(className, ...parts) {
    const element = document.createElement("p");
    element.className = className;
    element.append(...parts);
    return element;
  }

  function card(entry) {
    const item = document.createElement("li");
    const image = document.createElement("img");
    const explained = filters.explained.checked;
    const file = explained ? entry.explanation : entry.picture;
    image.addEventListener("load", () => {
      image.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) < TINY_PIXELS);
    });
    image.alt = `${explained ? "Where the model looked: actual" : "Actual"} ${entry.label}, `
      + `predicted ${entry.predicted} with a probability of ${percent(entry.confidence)}`;
    image.src = `data:image/jpeg;base64,${gallery.files[file]}`;
    const result = entry.correct ? "✓ right" : "✗ wrong";
    const mark = document.createElement("span");
    mark.className = `mark ${entry.model}`;
    mark.setAttribute("aria-hidden", "true");
    item.append(image, paragraph(entry.correct ? "result" : "result wrong", result));
    if (entry.correct) {
      item.append(paragraph("", `${entry.label}, ${percent(entry.confidence)}`));
    } else {
      item.append(
        paragraph("", `predicted ${entry.predicted}, ${percent(entry.confidence)}`),
        paragraph("", `actual ${entry.label}, ${percent(entry.probability_of_label)}`),
      );
    }
    item.append(paragraph("quiet", mark, modelNames[entry.model]), paragraph("quiet", entry.name));
    return item;
  }

  function showMore() {
    const start = list.children.length;
    list.append(...matching.slice(start, start + PICTURES_AT_ONCE).map(card));
    const shown = list.children.length;
    more.hidden = shown === matching.length;
    byId("gallery-status").textContent = matching.length === 0
      ? "No picture matches these filters."
      : `${shown} of ${matching.length} matching pictures shown, of ${gallery.entries.length} in all`;
  }

  function filter() {
    matching = gallery.entries.filter(matches);
    byId("explained-note").hidden = !filters.explained.checked;
    list.replaceChildren();
    showMore();
  }

  more.addEventListener("click", () => {
    const first = list.children.length;
    showMore();
    // The button may be gone: whoever uses a keyboard goes on at the first new picture.
    list.children[first].tabIndex = -1;
    list.children[first].focus({ preventScroll: true });
  });
  byId("filters").addEventListener("change", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => setTimeout(filter));
  fillClasses("label");
  fillClasses("predicted");
  filter();

  function showCell(meta, actual, predicted) {
    const wanted = { model: meta.model, label: meta.classes[actual], predicted: meta.classes[predicted] };
    byId("filters").reset();
    for (const [name, value] of Object.entries(wanted)) {
      const options = [...filters[name].options];
      if (!options.some((option) => option.value === value)) filters[name].add(new Option(value, value));
      filters[name].value = value;
    }
    setTimeout(() => {
      filter();
      byId("pictures").scrollIntoView();
    });
  }

  drawAll().then(() => {
    for (const [name, { layout }] of Object.entries(figures)) {
      if (layout.meta) {
        byId(name).on("plotly_click", ({ points: [cell] }) => showCell(layout.meta, cell.y, cell.x));
      }
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    document.documentElement.dataset.ready = "true";
  });
})();
