// One run, or two side by side: facts, settings that differ, density of each layer, and training curves with pruning events.

const MAX_LINES = 40; // of more events, none gets a vertical line
const LINES = ["solid", "dot"]; // of the first and the second run
const chosen = [0]; // the numbers of the runs shown

const runsShown = () => chosen.map((number) => data.runs[number]);
const label = (i) => (chosen.length > 1 ? `${"AB"[i]}: ` : "");
const shortened = (name, most) => (name.length > most ? `…${name.slice(1 - most)}` : name);

function choose(...numbers) {
  chosen.splice(0, 2, ...numbers);
  byId("which").value = chosen[0];
  byId("other").value = chosen[1] ?? "";
  for (const box of document.querySelectorAll("#table td input")) box.checked = chosen.includes(Number(box.value));
  drawRun();
}

// The box of a row: a third run takes the place of the first; the last one stays.
function runBox(number) {
  const box = element("input", null, { type: "checkbox", value: number, "aria-label": data.runs[number].title });
  box.checked = chosen.includes(number);
  box.addEventListener("change", () => {
    const others = chosen.filter((one) => one !== number);
    choose(...(box.checked ? [...others, number].slice(-2) : others.length ? others : chosen));
  });
  return box;
}

function drawFacts(runs) {
  byId("facts").replaceChildren(...runs.map((run, i) => {
    const list = element("dl", null);
    list.append(...run.facts.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
    const part = element("section", null);
    part.append(element("h3", label(i) + run.title), list);
    return part;
  }));
}

// Nested settings as a map of dotted names to JSON texts.
function flatten(value, name = "") {
  if (value === null || typeof value !== "object" || !Object.keys(value).length) return [[name, JSON.stringify(value)]];
  return Object.entries(value).flatMap(([key, inner]) => flatten(inner, name ? `${name}.${key}` : key));
}

function drawSettings() {
  byId("settings").hidden = chosen.length < 2;
  const settings = chosen.map((number) => new Map(flatten(data.settings[number])));
  const names = [...new Set(settings.flatMap((one) => [...one.keys()]))];
  const table = element("table", null);
  const addRow = (tag, texts) => {
    const row = element("tr", null);
    row.append(...texts.map((text) => element(tag, text)));
    table.append(row);
  };
  addRow("th", ["Settings that differ", "A", "B"]);
  for (const name of names) {
    const values = settings.map((one) => one.get(name) ?? "not set");
    if (new Set(values).size > 1) addRow("td", [name, ...values]);
  }
  byId("settings").replaceChildren(table.rows.length > 1 ? table : element("p", "All settings are equal.", { class: "fine" }));
}

function drawLayers(runs) {
  const names = [...new Set(runs.flatMap((run) => run.layers.map(([name]) => name)))];
  if (!names.length) return note(byId("layers"), "Nothing was pruned.");
  const c = colours();
  const remaining = ([, sparsity]) => 100 * (1 - sparsity);
  const each = (names.length > 40 ? 15 : 24) * (runs.length > 1 ? 1.5 : 1);
  const size = names.length > 40 ? 10 : 12;
  const bars = runs.map((run, i) => ({
    type: "bar", orientation: "h", name: escapeMarkup(label(i) + run.title),
    y: run.layers.map(([name]) => names.indexOf(name)), x: run.layers.map(remaining),
    marker: { color: c.series[i] }, hoverinfo: "text",
    hovertext: run.layers.map((layer) => `${label(i)}${escapeMarkup(layer[0])}<br>${remaining(layer).toFixed(2)} % remain`),
    text: run.layers.map((layer) => `${remaining(layer).toFixed(1)} %`), textposition: "outside",
    textfont: { size, color: c.ink }, cliponaxis: false,
  }));
  const most = byId("layers").clientWidth < 560 ? 18 : 48;
  return draw(byId("layers"), bars, layoutStyle(c, {
    uirevision: chosen.join(), height: each * names.length + (runs.length > 1 ? 120 : 70), bargap: 0.25, hovermode: "closest",
    showlegend: runs.length > 1, legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", traceorder: "normal" },
    xaxis: axisStyle(c, { range: [0, 115], title: { text: "remaining weights, %", standoff: 6 } }),
    yaxis: axisStyle(c, {
      autorange: "reversed", tickvals: names.map((_, i) => i),
      ticktext: names.map((name) => escapeMarkup(shortened(name, most))), tickfont: { size }, showgrid: false,
    }),
  }));
}

// A metric has one colour in both runs.
function curveTraces(run, i, metrics, c) {
  return run.curves.map(([name, steps, values]) => {
    const loss = name.includes("loss");
    return {
      type: "scatter", mode: "lines+markers", name: label(i) + escapeMarkup(name), x: steps, yaxis: loss ? "y2" : "y",
      y: loss ? values : values.map((value) => 100 * value), marker: { size: 3 },
      line: { color: c.series[metrics.indexOf(name) % c.series.length], width: 1.6, dash: LINES[i] },
      hovertemplate: `%{y:.4~g}${loss ? "" : " %"} at step %{x}<extra>${label(i)}${escapeMarkup(name)}</extra>`,
    };
  });
}

function eventTrace(run, i, c) {
  const percent = (sparsity) => `${(100 * sparsity).toFixed(2)} %`;
  const steps = run.curves.flatMap(([, own]) => own);
  const end = Math.max(0, ...steps, ...run.events.map(([step]) => step));
  const events = [[0, 0, "", 0], ...run.events, [end, null, "", run.events.at(-1)?.[3] ?? 0]];
  return {
    type: "scatter", mode: "lines+markers", name: `${label(i)}sparsity, events`, yaxis: "y3",
    x: events.map(([step]) => step), y: events.map(([, , , sparsity]) => 100 * sparsity),
    line: { shape: "hv", color: c.ink, width: 1.4, dash: LINES[i] }, hoverinfo: "text",
    marker: { color: c.ink, size: events.map(([, , kind]) => (kind ? 5 : 0)) },
    hovertext: events.map(([step, epoch, kind, sparsity]) => (kind
      ? `${escapeMarkup(kind)} at step ${step}${epoch === null ? "" : `, epoch ${epoch}`}: sparsity ${percent(sparsity)}` : "")),
  };
}

function drawCurves(runs) {
  const events = runs.flatMap((run) => run.events);
  byId("curves-note").textContent = [
    events.length > MAX_LINES ? "Many events: they are marked only on the sparsity line." : "",
    runs.some((run) => run.downsampled) ? "Long curves are downsampled; the metrics in the run's folder are complete." : "",
  ].join(" ");
  const metrics = [...new Set(runs.flatMap((run) => run.curves.map(([name]) => name)))];
  if (!metrics.length) {
    return note(byId("curves"), "No metrics in the folder of a run: use logger=csv to log them.");
  }
  const c = colours();
  const pruned = events.length > 0;
  const traces = runs.flatMap((run, i) => [
    ...curveTraces(run, i, metrics, c), ...(run.events.length ? [eventTrace(run, i, c)] : []),
  ]);
  const lines = events.length > MAX_LINES ? [] : events.map(([step]) => ({
    type: "line", xref: "x", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, layer: "below",
    line: { color: c.edge, width: 1, dash: "dot" },
  }));
  const title = (text) => ({ title: { text, standoff: 6 } });
  return draw(byId("curves"), traces, layoutStyle(c, {
    uirevision: chosen.join(), height: 560, hovermode: "closest", shapes: lines, legend: { orientation: "h", x: 0, y: -0.12, yanchor: "top" },
    xaxis: axisStyle(c, { anchor: pruned ? "y3" : "y2", ...title("optimizer step") }),
    yaxis: axisStyle(c, { domain: [pruned ? 0.62 : 0.53, 1], ...title("accuracy, %") }),
    yaxis2: axisStyle(c, { domain: [pruned ? 0.28 : 0, pruned ? 0.58 : 0.47], ...title("loss") }),
    ...(pruned ? { yaxis3: axisStyle(c, { domain: [0, 0.22], rangemode: "tozero", ...title("sparsity, %") }) } : {}),
  }));
}

function drawRun() {
  const runs = runsShown();
  drawFacts(runs);
  drawSettings();
  drawLayers(runs);
  drawCurves(runs);
}

function startRun() {
  for (const id of ["which", "other"]) {
    byId(id).append(...data.runs.map((run, i) => element("option", run.title, { value: i })));
  }
  const read = () => {
    const [run, other] = [byId("which").value, byId("other").value];
    choose(Number(run), ...(other === "" || other === run ? [] : [Number(other)]));
  };
  byId("which").addEventListener("change", read);
  byId("other").addEventListener("change", read);
  drawRun();
}
