// One run: facts, density of each layer, and training curves with pruning events.

const MAX_LINES = 40; // of more events, none gets a vertical line

function drawFacts(run) {
  const parts = run.facts.flatMap(([name, text]) => [element("dt", name), element("dd", text)]);
  byId("facts").replaceChildren(...parts);
}

function drawLayers(run) {
  if (!run.layers.length) return note(byId("layers"), "Nothing was pruned in this run.");
  const c = colours();
  const names = run.layers.map(([name]) => name);
  const remaining = ([, sparsity]) => 100 * (1 - sparsity);
  const each = names.length > 40 ? 15 : 24;
  const bars = {
    type: "bar", orientation: "h", y: names.map((_, i) => i), x: run.layers.map(remaining),
    marker: { color: c.series[0] }, hoverinfo: "text",
    hovertext: run.layers.map((layer) => `${escapeMarkup(layer[0])}<br>${remaining(layer).toFixed(2)} % remain`),
    text: run.layers.map((layer) => `${remaining(layer).toFixed(1)} %`), textposition: "outside",
    textfont: { size: each > 20 ? 12 : 10, color: c.ink }, cliponaxis: false,
  };
  const most = byId("layers").clientWidth < 560 ? 18 : 48;
  const short = (name) => (name.length > most ? `…${name.slice(1 - most)}` : name);
  return draw(byId("layers"), [bars], layoutStyle(c, {
    height: each * names.length + 70, bargap: 0.25, hovermode: "closest",
    xaxis: axisStyle(c, { range: [0, 115], title: { text: "remaining weights, %", standoff: 6 } }),
    yaxis: axisStyle(c, {
      autorange: "reversed", tickvals: names.map((_, i) => i), ticktext: names.map((name) => escapeMarkup(short(name))),
      tickfont: { size: each > 20 ? 12 : 10 }, showgrid: false,
    }),
  }));
}

function curveTraces(run, c) {
  return run.curves.map(([name, steps, values], index) => {
    const loss = name.includes("loss");
    return {
      type: "scatter", mode: "lines+markers", name: escapeMarkup(name), x: steps, yaxis: loss ? "y2" : "y",
      y: loss ? values : values.map((value) => 100 * value), marker: { size: 3 },
      line: { color: c.series[index % c.series.length], width: 1.6 },
      hovertemplate: `%{y:.4~g}${loss ? "" : " %"} at step %{x}<extra>${escapeMarkup(name)}</extra>`,
    };
  });
}

function eventTrace(run, c) {
  const percent = (sparsity) => `${(100 * sparsity).toFixed(2)} %`;
  const steps = run.curves.flatMap(([, own]) => own);
  const end = Math.max(0, ...steps, ...run.events.map(([step]) => step));
  const events = [[0, 0, "", 0], ...run.events, [end, null, "", run.events.at(-1)?.[3] ?? 0]];
  return {
    type: "scatter", mode: "lines+markers", name: "sparsity, events", yaxis: "y3",
    x: events.map(([step]) => step), y: events.map(([, , , sparsity]) => 100 * sparsity),
    line: { shape: "hv", color: c.ink, width: 1.4 }, hoverinfo: "text",
    marker: { color: c.ink, size: events.map(([, , kind]) => (kind ? 5 : 0)) },
    hovertext: events.map(([step, epoch, kind, sparsity]) => (kind
      ? `${escapeMarkup(kind)} at step ${step}${epoch === null ? "" : `, epoch ${epoch}`}: sparsity ${percent(sparsity)}` : "")),
  };
}

function drawCurves(run) {
  byId("curves-note").textContent = [
    run.events.length > MAX_LINES ? "Many events: they are marked only on the sparsity line." : "",
    run.downsampled ? "Long curves are downsampled; the metrics in the run's folder are complete." : "",
  ].join(" ");
  if (!run.curves.length) {
    return note(byId("curves"), "No metrics in this run's folder: use logger=csv to log them.");
  }
  const c = colours();
  const pruned = run.events.length > 0;
  const traces = [...curveTraces(run, c), ...(pruned ? [eventTrace(run, c)] : [])];
  const lines = run.events.length > MAX_LINES ? [] : run.events.map(([step]) => ({
    type: "line", xref: "x", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, layer: "below",
    line: { color: c.edge, width: 1, dash: "dot" },
  }));
  const title = (text) => ({ title: { text, standoff: 6 } });
  return draw(byId("curves"), traces, layoutStyle(c, {
    height: 560, hovermode: "closest", shapes: lines, legend: { orientation: "h", x: 0, y: -0.12, yanchor: "top" },
    xaxis: axisStyle(c, { anchor: pruned ? "y3" : "y2", ...title("optimizer step") }),
    yaxis: axisStyle(c, { domain: [pruned ? 0.62 : 0.53, 1], ...title("accuracy, %") }),
    yaxis2: axisStyle(c, { domain: [pruned ? 0.28 : 0, pruned ? 0.58 : 0.47], ...title("loss") }),
    ...(pruned ? { yaxis3: axisStyle(c, { domain: [0, 0.22], rangemode: "tozero", ...title("sparsity, %") }) } : {}),
  }));
}

function drawRun() {
  const run = data.runs[Number(byId("which").value)];
  if (!run) return;
  drawFacts(run);
  drawLayers(run);
  drawCurves(run);
}

function startRun() {
  data.runs.forEach((run, i) => byId("which").append(element("option", run.title, { value: i })));
  byId("which").addEventListener("change", drawRun);
  drawRun();
}
