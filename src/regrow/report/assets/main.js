// Starts the page: the table first, then the plots.

async function start() {
  try {
    data = JSON.parse(await unpacked("data"));
    if (!data.rows.length) return;
    startTable();
    await unpackPlotly();
  } catch (error) {
    at("trouble").textContent = `This page needs a newer browser (${error}); results.csv holds the same numbers.`;
    at("trouble").hidden = false;
    return;
  }
  startAccuracy();
  startRun();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawAccuracy();
    drawRun();
  });
}

start().finally(() => document.documentElement.setAttribute("data-ready", ""));
