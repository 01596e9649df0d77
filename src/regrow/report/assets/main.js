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
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawAccuracy();
    drawRun();
  });
}

start().finally(() => document.documentElement.setAttribute("data-ready", ""));
