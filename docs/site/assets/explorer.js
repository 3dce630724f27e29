// Sliders over a computed grid: they set the chart's signals, the sentence, the table and the address. Every number
// that is shown is a text of the page's dataset; nothing is computed here.
"use strict";

(() => {
  const { grids, curves, says, again, chart } = JSON.parse(document.getElementById("explorer").textContent);
  const [axis] = grids;
  const inputs = grids.map((grid) => document.getElementById(`set-${grid.name}`));
  const find = (selector) => document.querySelector(`.md-content ${selector}`);
  let view = null;

  const steps = grids.map((_, k) => grids.slice(k + 1).reduce((size, grid) => size * grid.values.length, 1));
  const place = (at) => at.reduce((sum, k, axis) => sum + k * steps[axis], 0);
  const chosen = () => inputs.map((input) => Number(input.value));

  const points = () => {
    const rows = [];
    const size = steps[0] * axis.values.length;
    for (let k = 0; k < size; k += 1) {
      const at = Object.fromEntries(grids.map((grid, g) => [grid.name, Math.floor(k / steps[g]) % grid.values.length]));
      for (const curve of curves.filter((other) => other.drawn)) {
        rows.push({ ...at, x: axis.values[at[axis.name]], y: curve.values[k], curve: curve.label });
      }
    }
    return rows;
  };

  const fill = (template, values) =>
    Object.entries(values).reduce((text, [name, value]) => text.replaceAll(`{${name}}`, value), template);

  const show = () => {
    const at = chosen();
    const given = Object.fromEntries(grids.map((grid, g) => [grid.name, grid.shown[at[g]]]));
    const found = Object.fromEntries(curves.map((curve) => [curve.name, curve.shown[place(at)]]));
    grids.forEach((grid, g) => {
      inputs[g].setAttribute("aria-valuetext", given[grid.name]);
      inputs[g].nextElementSibling.value = given[grid.name];
      view?.signal(`at_${grid.name}`, at[g]);
    });
    view?.run();
    find(".sentence").textContent = fill(says, { ...given, ...found });
    find(".again code").textContent = fill(again, { ...given, ...found });
    [...find("table.numbers").tBodies[0].rows].forEach((row, k) => {
      row.classList.toggle("here", k === at[0]);
      curves.forEach((curve, c) => {
        row.cells[c + 1].textContent = curve.shown[place([k, ...at.slice(1)])];
      });
    });
    return `#${new URLSearchParams(given)}`;
  };

  const keep = () => {
    const link = show();
    find(".permalink").href = link;
    history.replaceState(null, "", link);
  };

  // A value that the grid no longer holds becomes the nearest that it does.
  const restore = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    grids.forEach((grid, g) => {
      const value = Number(given.get(grid.name) ?? NaN);
      const apart = grid.values.map((other) => Math.abs(other - value));
      if (Number.isFinite(value)) inputs[g].value = apart.indexOf(Math.min(...apart));
    });
    find(".permalink").href = show();
  };

  inputs.forEach((input) => input.addEventListener("input", keep));
  window.addEventListener("hashchange", restore);
  restore();
  chart.datasets = { points: points() };
  vegaEmbed(find(".chart"), chart, { actions: false, renderer: "svg", tooltip: false }).then((made) => {
    view = made.view;
    show();
  });
})();
