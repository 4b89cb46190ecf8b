"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const slider = document.getElementById("eps"), shown = document.getElementById("eps-text");
  const percent = (share) => (100 * share).toFixed(2) + " %";
  const few = 20;

  // Shares in percent are rounded the way that claims nothing: certified down, attacked up.
  const down = (count, total) => (Math.floor(1e4 * count / total) / 100).toFixed(2) + " %";
  const up = (count, total) => (Math.ceil(1e4 * count / total - 1e-9) / 100).toFixed(2) + " %";

  function radiusText(e) {
    const steps = e * 255, whole = Math.abs(steps - Math.round(steps)) < 1e-6 && Math.round(steps) % 51;
    return e.toPrecision(4) + (whole ? " (" + Math.round(steps) + "/255)" : "");
  }

  function look(run, e) {
    const n = run.label.length, size = run.classes.length, good = new Array(size).fill(0), total = new Array(size).fill(0);
    const cells = new Map();
    let certified = 0;
    for (let i = 0; i < n; i++) {
      const a = run.label[i], right = run.prediction[i] === a, holds = right && run.radius[i] > e;
      total[a]++;
      if (holds) { certified++; good[a]++; }
      const b = holds ? a : right ? run.runner[i] : run.prediction[i];
      cells.set(a * size + b, (cells.get(a * size + b) || 0) + 1);
    }
    let attacked = 0;
    if (run.attacked) run.attacked.distance.forEach((d) => { if (d === null || d > e) attacked++; });
    return {n, size, good, total, cells, certified, attacked};
  }

  function confusion(place, run, found) {
    const size = found.size, table = document.createElement("table");
    const cell = (row, kind, text) => { const c = document.createElement(kind); c.textContent = text; row.append(c); return c; };
    if (size > few) {  // too many for a matrix: the pairs that count most
      const pairs = [...found.cells].filter(([k]) => Math.floor(k / size) !== k % size).sort((p, q) => q[1] - p[1]).slice(0, few);
      const head = table.createTHead().insertRow();
      ["true class", "not ruled out", "samples"].forEach((t) => cell(head, "th", t));
      const body = table.createTBody();
      pairs.forEach(([k, v]) => { const r = body.insertRow(); cell(r, "th", run.classes[Math.floor(k / size)]); cell(r, "td", run.classes[k % size]); cell(r, "td", v); });
    } else {
      const head = table.createTHead().insertRow(), body = table.createTBody();
      cell(head, "th", "");
      const upright = run.classes.some((name) => name.length > 3) ? "head" : "";
      run.classes.forEach((name) => cell(head, "th", name).className = upright);
      for (let a = 0; a < size; a++) {
        const r = body.insertRow();
        cell(r, "th", run.classes[a]);
        for (let b = 0; b < size; b++) {
          const v = found.cells.get(a * size + b) || 0, share = found.total[a] ? v / found.total[a] : 0, c = cell(r, "td", v || "");
          const strength = Math.min(80, (v ? 8 : 0) + 100 * Math.sqrt(share) * 0.75);
          c.style.background = "color-mix(in srgb, var(" + (a === b ? "--good" : "--bad") + ") " + strength.toFixed(0) + "%, transparent)";
          c.title = run.classes[a] + " → " + run.classes[b] + ": " + v;
        }
      }
    }
    place.replaceChildren(table);
  }

  function update() {
    const e = Number(slider.value);
    shown.textContent = radiusText(e);
    document.querySelectorAll(".marker").forEach((line) => {
      const x = Number(line.dataset.left) + Number(line.dataset.span) * e / Number(line.dataset.top);
      line.setAttribute("x1", x); line.setAttribute("x2", x);
    });
    document.querySelectorAll(".chips button").forEach((b) => b.classList.toggle("on", Math.abs(Number(b.dataset.eps) - e) < 1e-9));
    data.runs.forEach((run, number) => {
      const found = look(run, e);
      document.querySelectorAll('.readout[data-run="' + number + '"] [data-what]').forEach((place) => {
        place.textContent = place.dataset.what === "certified" ? down(found.certified, found.n) : up(found.attacked, run.attacked.distance.length);
      });
      const section = document.querySelector('section.run[data-run="' + number + '"]');
      section.querySelectorAll("tr[data-class]").forEach((row) => {
        const k = Number(row.dataset.class);
        row.querySelector('[data-what="class"]').textContent = found.total[k] ? down(found.good[k], found.total[k]) : "";
      });
      confusion(section.querySelector('[data-what="confusion"]'), run, found);
      section.querySelectorAll("figure[data-radius]").forEach((figure) => {
        const badge = figure.querySelector(".badge"), d = figure.dataset.distance;
        const state = Number(figure.dataset.radius) > e ? ["yes", "certified"] : d !== "" && Number(d) <= e ? ["no", "broken"] : ["open", "open"];
        badge.className = "badge " + state[0];
        badge.textContent = state[1] + " at ε";
      });
    });
  }

  document.querySelectorAll(".chips button").forEach((b) => b.addEventListener("click", () => {
    slider.step = "any"; slider.value = b.dataset.eps; update();
  }));
  slider.addEventListener("input", update);
  slider.step = "any"; slider.value = slider.getAttribute("value");  // where it starts is not on the grid of steps
  update();
})();
