// What all parts of the page use. Text from jobs becomes text nodes, never markup.

let data; // what the page shows: see payload.py
const at = (id) => document.getElementById(id);
const told = (place) => (place === null ? "" : data.texts[place]);

// Plotly reads simple markup in names: what a job calls itself must not become any.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function element(tag, content, attributes = {}) {
  const made = document.createElement(tag);
  if (content !== null) made.textContent = content;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// The colours of the page as it is shown now: light or dark.
function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    ink: read("--ink"), soft: read("--soft"), grid: read("--grid"), edge: read("--edge"),
    card: read("--card"), band: read("--band"), series: read("--series").split(/\s+/),
  };
}

function axisStyle(c, more = {}) {
  return {
    gridcolor: c.grid, linecolor: c.edge, tickcolor: c.edge, zeroline: false, automargin: true,
    title: { text: "", standoff: 10 }, ...more,
  };
}

function layoutStyle(c, more = {}) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: c.ink },
    hoverlabel: { bgcolor: c.card, bordercolor: c.edge, font: { color: c.ink, size: 12.5 }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: c.soft, activecolor: c.ink },
    margin: { l: 20, r: 12, t: 30, b: 20 }, ...more,
  };
}

const CONFIG = {
  responsive: true, displaylogo: false, showSendToCloud: false, displayModeBar: innerWidth > 640 ? "hover" : false,
  modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
  toImageButtonOptions: { format: "svg", filename: "regrow" },
};

// Buttons of which one is pressed; calls back with its name.
function choice(place, names, labels, pressed, then) {
  place.replaceChildren();
  for (const name of names) {
    const button = element("button", labels[name], { type: "button", "data-name": name });
    button.setAttribute("aria-pressed", String(name === pressed));
    button.addEventListener("click", () => {
      for (const one of place.children) one.setAttribute("aria-pressed", String(one === button));
      then(name);
    });
    place.append(button);
  }
}

// What the page carries compressed: gzip, in base64.
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(at(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  at(id).remove();
  return new Response(stream).text();
}

async function unpackPlotly() {
  const script = document.createElement("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);
}
