// Accuracy against size and speed: one line per method, the reference, the Pareto front.

const AXES = {
  sparsity: { label: "Sparsity", unit: "%", title: "Sparsity of the prunable weights, %", times: 100, type: "linear" },
  compression: { label: "Compression", unit: "x", title: "Compression: dense / remaining parameters, x", times: 1, type: "log" },
  macs: { label: "MACs", unit: "per image", title: "MACs per image", times: 1, type: "log" },
  latency: { label: "Latency", unit: "ms", title: "Median latency, ms", times: 1, type: "linear" },
};
const MEASURES = {
  accuracy: { label: "Top-1", title: "(top-1), %" },
  accuracy_top5: { label: "Top-5", title: "(top-5), %" },
  accuracy_drop: { label: "Against dense", title: "Change against the dense baseline, points" },
};
// The title of the vertical axis: an accuracy has the name of its split.
const measureTitle = () => {
  const { title } = MEASURES[shown.measure];
  return title.startsWith("(") ? `${data.measured} ${title}` : title;
};
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "pentagon", "hexagon", "bowtie", "hourglass"];
const DASHES = ["dash", "dashdot", "longdash", "dot"]; // of dense baselines
const NEAR = 0.02; // networks whose densities differ by at most this fraction are compared
const shown = { task: 0, axis: "sparsity", measure: "accuracy", levels: false, within: 0 };

const has = (point) => shown.axis in point.x && shown.measure in point.y;
const xOf = (point) => point.x[shown.axis][0] * AXES[shown.axis].times;
const xSpreadOf = (point) => (point.x[shown.axis][1] ?? 0) * AXES[shown.axis].times;
const yOf = (point) => point.y[shown.measure][0] * 100;
const ySpreadOf = (point) => (point.y[shown.measure][1] ?? 0) * 100;
const onFront = (point) => point.fronts.includes(`${shown.axis} ${shown.measure}`);

// What a task's networks can be compared with: a dense baseline, or any method.
const references = (task) => [...task.dense.map((point) => ({ name: point.name, dense: point })), ...task.series];
const referenceOf = (task) => references(task)[task.reference ?? 0];

// The reference itself if dense, or its network of about the same sparsity, if there is one.
function referencePoint(task, of, sparsity) {
  const { dense, points } = referenceOf(task);
  if (dense) return dense;
  const distance = (point) => Math.abs(point.x.sparsity[0] - sparsity);
  const near = (point) => distance(point) <= NEAR * (1 - Math.min(point.x.sparsity[0], sparsity));
  const comparable = points.filter((point) => point.of === of && near(point));
  return comparable.sort((a, b) => distance(a) - distance(b))[0];
}

// The difference of means to the reference, with its standard error sqrt(s1^2 / n1 + s2^2 / n2).
function differenceText(task, point) {
  const other = "sparsity" in point.x ? referencePoint(task, point.of, point.x.sparsity[0]) : null;
  if (!other || other === point || !(shown.measure in other.y)) return "";
  const variances = [point, other].map(({ y: { [shown.measure]: [, deviation, n] } }) => deviation ** 2 / n);
  const error = ySpreadOf(point) || ySpreadOf(other) ? ` ± ${(100 * Math.sqrt(variances[0] + variances[1])).toFixed(2)}` : "";
  const difference = signed(yOf(point) - yOf(other));
  return `<br>${MEASURES[shown.measure].label}: ${difference}${error} points against ${escapeMarkup(referenceOf(task).name)}`;
}

const signed = (value) => `${value < 0 ? "" : "+"}${value.toFixed(2)}`;

function trace(points, more) {
  const task = data.tasks[shown.task];
  return {
    type: "scatter", x: points.map(xOf), y: points.map(yOf), hoverinfo: "text",
    hovertext: points.map((point) => point.text + differenceText(task, point)), ...more,
  };
}

function bars(lengths, colour) {
  return { type: "data", array: lengths, visible: lengths.some((one) => one > 0), color: colour, thickness: 1.4, width: 4 };
}

function methodTraces(series, index, c, isReference) {
  const colour = c.series[index % c.series.length];
  const shift = Math.floor(index / SYMBOLS.length); // repeated colours get other symbols
  const group = `method ${index}`;
  const points = series.points.filter(has);
  const traces = [];
  for (const point of shown.levels ? series.points : []) {
    const levels = point.levels.filter(has);
    if (!levels.length) continue;
    traces.push(trace(has(point) ? [...levels, point] : levels, {
      mode: "lines+markers", showlegend: false, legendgroup: group, opacity: 0.55,
      line: { color: colour, width: 1, dash: "dot" }, marker: { color: colour, size: 4 },
    }));
  }
  if (!points.length) return traces;
  const xSpreads = points.map((point) => (xSpreadOf(point) > 0.01 * xOf(point) ? xSpreadOf(point) : 0));
  traces.push(trace(points, {
    name: escapeMarkup(series.name), legendgroup: group, mode: series.line || isReference ? "lines+markers" : "markers",
    line: { color: colour, width: isReference ? 5 : 2 },
    marker: { color: colour, size: 8, symbol: SYMBOLS[(index + shift) % SYMBOLS.length] },
    error_y: bars(points.map(ySpreadOf), colour), error_x: bars(xSpreads, colour),
  }));
  return traces;
}

// A dashed line across the plot, with hover text everywhere, and a marker at the dense network.
function denseTraces(baseline, index, c, from, to, isReference) {
  if (!(shown.measure in baseline.y)) return [];
  const places = Array.from({ length: 41 }, (_, i) => from + ((to - from) * i) / 40);
  const log = AXES[shown.axis].type === "log";
  const legendgroup = `dense ${index}`;
  const across = log ? places.map((place) => 10 ** place) : places;
  const line = {
    type: "scatter", mode: "lines", x: across, y: across.map(() => yOf(baseline)), hoverinfo: "text",
    hovertext: across.map(() => baseline.text), name: escapeMarkup(baseline.name), legendgroup,
    line: { color: c.soft, width: isReference ? 3 : 1.5, dash: DASHES[index % DASHES.length] },
  };
  if (!has(baseline)) return [line];
  return [line, trace([baseline], {
    mode: "markers", showlegend: false, legendgroup,
    marker: { color: c.soft, size: 10, symbol: "diamond-tall" },
    error_y: bars([ySpreadOf(baseline)], c.soft),
  })];
}

function band(baseline, c) {
  const [middle, half] = [yOf(baseline), ySpreadOf(baseline)];
  return {
    type: "rect", xref: "paper", x0: 0, x1: 1, yref: "y", y0: middle - half, y1: middle + half,
    fillcolor: c.band, line: { width: 0 }, layer: "below",
  };
}

const bestDense = (task) => Math.max(...task.dense.filter((p) => shown.measure in p.y).map(yOf));

// The whole vertical axis, or the range within some points of the dense networks.
function yRange(task) {
  if (!shown.within) return {};
  return { range: [bestDense(task) - shown.within, bestDense(task) + shown.within / 5], autorange: false };
}

// Cut off a few collapsed networks, which would squeeze all others into one line.
function defaultRange(task) {
  const distances = task.series.flatMap((one) => one.points).filter(has).map((p) => bestDense(task) - yOf(p));
  const near = distances.filter((points) => points <= 10).length;
  return near < distances.length && 2 * near >= distances.length ? 10 : 0;
}

function frontTrace(points, c) {
  const front = points.filter(onFront).sort((a, b) => xOf(a) - xOf(b));
  return {
    type: "scatter", mode: "lines+markers", x: front.map(xOf), y: front.map(yOf),
    name: "Pareto front", hoverinfo: "skip", line: { color: c.ink, width: 1, dash: "dot" },
    marker: { symbol: "circle-open", size: 16, color: c.ink, line: { width: 1.5, color: c.ink } },
  };
}

// Round numbers on a logarithmic axis, as many as fit.
function logTicks(from, to, narrow) {
  const decades = to - from;
  const steps = decades > 2.5 ? [1] : decades > 1 || narrow ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
  const values = [];
  for (let power = Math.floor(from) - 1; power <= to + 1; power += 1) {
    for (const step of steps) values.push(Number((step * 10 ** power).toPrecision(3)));
  }
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
  return { tickmode: "array", tickvals: values, ticktext: values.map((value) => short.format(value)) };
}

function drawAccuracy() {
  const c = colours();
  const task = data.tasks[shown.task];
  const axis = AXES[shown.axis];
  const candidates = [...task.series.flatMap((series) => series.points), ...task.dense].filter(has);
  const levels = shown.levels ? task.series.flatMap((s) => s.points.flatMap((p) => p.levels)).filter(has) : [];
  const scale = axis.type === "log" ? Math.log10 : (value) => value;
  const places = [...candidates, ...levels].map((point) => scale(xOf(point)));
  const [from, to] = places.length ? [Math.min(...places), Math.max(...places)] : [0, 1];
  const narrow = byId("plot").clientWidth < 560;
  const reference = referenceOf(task);
  const traces = (places.length ? task.dense : []).flatMap((baseline, i) => (
    denseTraces(baseline, i, c, from, to, baseline === reference.dense)));
  traces.push(frontTrace(candidates, c));
  task.series.forEach((series, i) => traces.push(...methodTraces(series, i, c, series === reference)));
  const layout = layoutStyle(c, {
    uirevision: JSON.stringify(shown), // keeps a zoom, and hidden methods, until something else is shown
    xaxis: axisStyle(c, {
      type: axis.type, title: { text: narrow ? `${axis.label}, ${axis.unit}` : axis.title, standoff: 8 },
      ...(axis.type === "log" ? logTicks(from, to, narrow) : {}),
    }),
    yaxis: axisStyle(c, { title: { text: measureTitle(), standoff: 8 }, ...yRange(task) }),
    hovermode: "closest", hoverdistance: 14, showlegend: true,
    legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom", font: { size: narrow ? 11 : 13 } },
    // only a reference has a band
    shapes: task.dense.filter((p) => p === reference.dense).filter((p) => shown.measure in p.y && ySpreadOf(p) > 0).map((p) => band(p, c)),
    annotations: places.length ? [] : [{
      text: "no measurements on this axis", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5,
    }],
  });
  const below = shown.within ? candidates.filter((p) => yOf(p) < bestDense(task) - shown.within).length : 0;
  const hidden = below ? `. Below the shown range: ${below} of ${candidates.length} points` : "";
  byId("size").textContent = `${task.name}; dense: ${task.size}${hidden}`;
  return draw(byId("plot"), traces, layout);
}

function startAccuracy() {
  data.tasks.forEach((task, i) => byId("task").append(element("option", task.name, { value: i })));
  byId("task-label").hidden = data.tasks.length < 2;
  const axisLabels = Object.fromEntries(Object.entries(AXES).map(([k, v]) => [k, v.label]));
  const measureLabels = Object.fromEntries(Object.entries(MEASURES).map(([k, v]) => [k, v.label]));
  const redraw = () => {
    const task = data.tasks[shown.task];
    const points = [...task.series.flatMap((series) => series.points), ...task.dense];
    const there = Object.keys(MEASURES).filter((name) => points.some((point) => name in point.y));
    if (!there.includes(shown.measure)) shown.measure = "accuracy";
    byId("within").value = shown.within = defaultRange(task);
    byId("reference").replaceChildren(...references(task).map(({ name }, i) => element("option", name, { value: i })));
    byId("reference").value = task.reference ?? 0;
    makeChoice(byId("measures"), there, measureLabels, shown.measure, (name) => { shown.measure = name; drawAccuracy(); });
    drawAccuracy();
  };
  makeChoice(byId("axes"), Object.keys(AXES), axisLabels, shown.axis, (name) => { shown.axis = name; drawAccuracy(); });
  // show levels if no method has a second operating point
  shown.levels = data.tasks.every((task) => task.series.every((series) => series.points.length < 2));
  byId("show-levels").checked = shown.levels;
  byId("show-levels").addEventListener("change", (event) => { shown.levels = event.target.checked; drawAccuracy(); });
  byId("within").addEventListener("change", (event) => { shown.within = Number(event.target.value); drawAccuracy(); });
  byId("reference").addEventListener("change", (event) => {
    data.tasks[shown.task].reference = Number(event.target.value);
    drawAccuracy();
    drawTable();
  });
  byId("task").addEventListener("change", (event) => { shown.task = Number(event.target.value); redraw(); });
  redraw();
}
