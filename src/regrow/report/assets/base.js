// Shared by all parts of the page. Text from jobs is inserted as text nodes, never as markup.

let data; // see page.py
const byId = (id) => document.getElementById(id);

// Plotly interprets simple markup in names, so it is escaped.
function escapeMarkup(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function element(tag, content, attributes = {}) {
  const node = document.createElement(tag);
  if (content !== null) node.textContent = content;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// The colours of the current theme, light or dark.
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
    paper_bgcolor: c.card, plot_bgcolor: c.card, ...(printing() ? { width: 960 } : {}), // fits A4 and Letter
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: c.ink },
    hoverlabel: { bgcolor: c.card, bordercolor: c.edge, font: { color: c.ink, size: 12.5 }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: c.soft, activecolor: c.ink },
    margin: { l: 20, r: 12, t: 30, b: 20 }, ...more,
  };
}

const CONFIG = {
  responsive: true, displaylogo: false, showSendToCloud: false, displayModeBar: innerWidth > 640 ? "hover" : false,
  modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "toImage"],
};

// Buttons of which one is pressed; calls `onChoice` with its name.
function makeChoice(parent, names, labels, pressed, onChoice) {
  parent.replaceChildren();
  for (const name of names) {
    const button = element("button", labels[name], { type: "button", "data-name": name });
    button.setAttribute("aria-pressed", String(name === pressed));
    button.addEventListener("click", () => {
      for (const one of parent.children) one.setAttribute("aria-pressed", String(one === button));
      onChoice(name);
    });
    parent.append(button);
  }
}

const printing = () => document.documentElement.classList.contains("print");
const svgButton = (place) => document.querySelector(`.svg[data-plot=${place.id}]`);

function note(place, text) {
  Plotly.purge(place);
  place.style.height = "";
  place.replaceChildren(element("p", text, { class: "fine" }));
  svgButton(place).hidden = true;
}

function draw(place, traces, layout) {
  if (!place.classList.contains("js-plotly-plot")) place.replaceChildren();
  if (layout.height) place.style.height = `${layout.height}px`;
  svgButton(place).hidden = false;
  return Plotly.react(place, traces, layout, CONFIG);
}

// Decompress an element's text: gzip in base64.
async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  byId(id).remove();
  return new Response(stream).text();
}

async function unpackPlotly() {
  const script = document.createElement("script");
  script.textContent = await unpack("plotly");
  document.head.append(script);
}
