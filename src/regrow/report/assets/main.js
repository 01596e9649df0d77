// Start the page: the table first, then the plots.

async function start() {
  try {
    data = JSON.parse(await unpack("data"));
    if (!data.rows.length) return;
    startTable();
    await unpackPlotly();
  } catch (error) {
    byId("trouble").textContent = `This page needs a newer browser (${error}); results.csv has the same numbers.`;
    byId("trouble").hidden = false;
    return;
  }
  startAccuracy();
  startRun();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => setPrinting(true));
  addEventListener("afterprint", () => setPrinting(false));
  for (const button of document.querySelectorAll(".svg")) {
    button.addEventListener("click", () => saveFigure(byId(button.dataset.plot)));
  }
}

function redraw() {
  drawAccuracy();
  drawRun();
}

// Paper has light colours, a fixed width, and everything unfolded.
function setPrinting(on) {
  document.documentElement.classList.toggle("light", on);
  document.documentElement.classList.toggle("print", on);
  for (const one of document.querySelectorAll(on ? "details:not([open])" : "details.unfolded")) {
    one.open = on;
    one.classList.toggle("unfolded", on);
  }
  redraw();
  if (!on) document.querySelectorAll(".js-plotly-plot").forEach((one) => Plotly.Plots.resize(one));
}

// Saves a figure as SVG, in light colours.
async function saveFigure(place) {
  document.documentElement.classList.add("light");
  redraw();
  const size = { width: place.clientWidth, height: place.clientHeight };
  await Plotly.downloadImage(place, { format: "svg", filename: `regrow-${place.id}`, ...size });
  document.documentElement.classList.remove("light");
  redraw();
}

start().finally(() => document.documentElement.setAttribute("data-ready", ""));
