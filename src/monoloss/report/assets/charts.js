// Draws the charts of the overview in the colours of the page; redraws them when the colour scheme changes.
(() => {
  "use strict";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const AXIS = /^[xy]axis\d*$/;

  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = {
      gridcolor: colour("--line"),
      zerolinecolor: colour("--line"),
      linecolor: colour("--line"),
      tickcolor: colour("--line"),
      automargin: true,
    };
    const result = {
      ...layout,
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { ...layout.font, color: colour("--ink"), family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: colour("--surface"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
    };
    delete result.width;
    for (const key of Object.keys(layout)) {
      if (AXIS.test(key)) result[key] = { ...layout[key], ...axis };
    }
    return result;
  }

  function draw() {
    const figures = new Map((window.MONOLOSS?.figures ?? []).map((entry) => [entry.id, entry.figure]));
    for (const place of document.querySelectorAll("[data-figure]")) {
      const figure = figures.get(place.dataset.figure);
      if (!figure) continue;
      place.style.height = `${figure.layout?.height ?? 320}px`;
      Plotly.react(place, structuredClone(figure.data), themed(figure.layout ?? {}), {
        displayModeBar: false,
        responsive: true,
      });
    }
  }

  draw();
  dark.addEventListener("change", draw);
})();
