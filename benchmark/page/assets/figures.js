"use strict";
/* The figures of a board, drawn from its data, each with the same numbers as a table. */
(() => {
  const { el, get, tell } = erasureBench;
  const holder = document.querySelector("[data-run]");
  const about = get(holder.dataset.run);
  const { figures } = about;
  const W = 860, H = 480, M = { left: 64, right: 24, top: 14, bottom: 50 };
  const percent = (v) => `${tell(100 * v)} %`;
  const SHAPES = [
    "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0", "M-5.5,-5.5h11v11h-11z", "M0,-7L7,5.5H-7z", "M0,-7.5L7.5,0L0,7.5L-7.5,0z",
    "M0,7L7,-5.5H-7z", "M-2.2,-7h4.4v4.8h4.8v4.4h-4.8v4.8h-4.4v-4.8h-4.8v-4.4h4.8z",
  ];
  const STAR = "M0,-9L2.4,-3.1L8.6,-2.8L3.8,1.2L5.4,7.3L0,3.8L-5.4,7.3L-3.8,1.2L-8.6,-2.8L-2.4,-3.1z";

  /* One look for each method in all figures of the run: colour and shape together tell 36 apart. */
  const looks = new Map();
  function names() {
    const found = new Map();
    for (const points of Object.values(figures.erase_keep.requests)) for (const p of points) found.set(p.method, p.role);
    for (const p of [...figures.concepts.points, ...figures.cost.points]) found.set(p.method, p.role);
    for (const method of Object.keys(figures.interference.methods)) if (!found.has(method)) found.set(method, "erasure");
    return [...found].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  }
  let nth = 0, control = 0;
  for (const [method, role] of names()) {
    if (role === "baseline") looks.set(method, { path: STAR, colour: "var(--ink)", hollow: false });
    else if (role === "control") looks.set(method, { path: SHAPES[control++ % 6], colour: "var(--control)", hollow: true });
    else { looks.set(method, { path: SHAPES[(nth + Math.floor(nth / 6)) % 6], colour: `var(--s${nth % 6})`, hollow: false }); nth++; }
  }

  function symbol(method, x = 0, y = 0) {
    const look = looks.get(method);
    return el("path", { d: look.path, transform: `translate(${x},${y})`, style:
      `fill:${look.hollow ? "var(--paper)" : look.colour};stroke:${look.hollow ? look.colour : "var(--paper)"};stroke-width:${look.hollow ? 2 : 1}` });
  }

  function legend(methods) {
    return el("ul", { class: "legend" }, methods.map((m) => el("li", {},
      el("svg", { width: 20, height: 20, viewBox: "-10 -10 20 20", "aria-hidden": "true" }, symbol(m)), m)));
  }

  /* --- axes --- */
  function nice(low, high, wanted = 6) {
    const raw = (high - low || 1) / wanted, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((s) => s >= raw * 0.999);
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(Number((i * step).toPrecision(10)));
    return ticks;
  }
  function decades(low, high) {
    const ticks = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
      for (const k of Math.log10(high / low) < 2 ? [1, 2, 5] : [1]) {
        const v = k * 10 ** p;
        if (v >= low * 0.999 && v <= high * 1.001) ticks.push(v);
      }
    }
    return ticks;
  }
  function scale(low, high, from, to, log = false) {
    const f = log ? Math.log10 : (v) => v;
    const at = (v) => from + (to - from) * (f(v) - f(low)) / (f(high) - f(low) || 1);
    return { at, low, high, ticks: log ? decades(low, high) : nice(low, high), inside: (v) => Math.min(high, Math.max(low, v)) };
  }

  function frame(label, x, y, xName, yName, xText, yText) {
    const bottom = H - M.bottom, right = W - M.right;
    const svg = el("svg", { class: "plot", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
    for (const t of x.ticks) svg.append(el("line", { class: "gridline", x1: x.at(t), x2: x.at(t), y1: M.top, y2: bottom }),
      el("text", { class: "soft", x: x.at(t), y: bottom + 18, "text-anchor": "middle" }, xText(t)));
    for (const t of y.ticks) svg.append(el("line", { class: "gridline", x1: M.left, x2: right, y1: y.at(t), y2: y.at(t) }),
      el("text", { class: "soft", x: M.left - 8, y: y.at(t) + 4, "text-anchor": "end" }, yText(t)));
    svg.append(el("line", { class: "axis", x1: M.left, x2: right, y1: bottom, y2: bottom }),
      el("line", { class: "axis", x1: M.left, x2: M.left, y1: M.top, y2: bottom }),
      el("text", { x: (M.left + right) / 2, y: H - 8, "text-anchor": "middle" }, xName),
      el("text", { transform: `translate(15,${(M.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yName));
    return svg;
  }

  function whisker(svg, x1, y1, x2, y2, method) {
    svg.append(el("line", { x1, y1, x2, y2, style: `stroke:${looks.get(method).colour};stroke-width:1.5;opacity:.75` }));
  }

  /* Names beside their points, moved down where one would lie on another, or up at the lower edge. */
  function labels(svg, placed) {
    const taken = [];
    for (const p of [...placed].sort((a, b) => a.y - b.y)) {
      const width = 7.4 * p.text.length, left = p.x + 12 + width > W - M.right;
      const x0 = left ? p.x - 12 - width : p.x + 12;
      let y = p.y - 8;
      for (let tries = 0; tries < 40 && taken.some((t) => Math.abs(t.y - y) < 15 && x0 < t.x1 && t.x0 < x0 + width); tries++) y += 4;
      y = Math.min(y, H - M.bottom - 4);
      taken.push({ x0, x1: x0 + width, y });
      if (Math.abs(y - p.y) > 22) svg.append(el("line", { class: "gridline", x1: p.x, y1: p.y, x2: left ? x0 + width : x0, y2: y - 4 }));
      svg.append(el("text", { x: x0, y, style: `font-weight:${p.strong ? 700 : 400}` }, p.text));
    }
  }

  function dataTable(caption, heads, rows) {
    return el("details", {}, el("summary", {}, "The same as a table"), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
      el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, heads.map((h) => el("th", { scope: "col" }, h)))),
        el("tbody", {}, rows.map((row) => el("tr", {}, row.map((v, i) => i ? el("td", {}, v) : el("th", { scope: "row" }, v))))))));
  }
  const span = (ci, text) => ci ? `${text(ci[0])} to ${text(ci[1])}` : "–";
  const kinds = { baseline: "unedited", erasure: "method", control: "control" };

  function menu(label, values, change) {
    const select = el("select", { onchange: () => change(select.value) }, values.map(([v, t]) => el("option", { value: v }, t)));
    return { box: el("label", {}, label, select), select };
  }

  /* --- erase and keep --- */
  function eraseKeep(box) {
    const { requests, keep } = figures.erase_keep, all = Object.keys(requests);
    const plot = el("div"), near = el("input", { type: "checkbox" });
    const { box: chooser, select } = menu("Request", all.map((r) => [r, r === "mean" ? "Mean over requests" : r]), () => draw());
    select.value = all.includes("mean") ? "mean" : all[0];
    near.addEventListener("change", () => draw());
    box.append(el("div", { class: "tools" }, chooser, el("label", { class: "check" }, near, "Near view of the methods")), plot);

    function draw() {
      const points = requests[select.value], erasing = points.filter((p) => p.role === "erasure");
      const ends = (name) => erasing.flatMap((p) => [p[name], ...(p[name + "_ci"] || [])]);
      const low = (name) => near.checked && erasing.length ? Math.min(...ends(name)) - 0.01 : 0;
      const high = (name) => near.checked && erasing.length ? Math.min(1, Math.max(...ends(name)) + 0.01) : 1;
      const x = scale(low("x"), high("x"), M.left, W - M.right), y = scale(low("y"), high("y"), H - M.bottom, M.top);
      const shown = near.checked ? erasing : points;
      const svg = frame(`Forgetting against keeping, ${select.value}; the numbers are in the table below`, x, y,
        "forgotten: 100 − accuracy on erased prompts, %", `kept: accuracy on ${keep} prompts, %`, (v) => tell(100 * v), (v) => tell(100 * v));
      const front = shown.filter((p) => p.front).sort((a, b) => a.x - b.x || b.y - a.y);
      if (front.length) {
        const corners = front.map((p, i) => `${i ? `V${y.at(p.y)}H${x.at(p.x)}` : `M${M.left},${y.at(p.y)}H${x.at(p.x)}`}`);
        svg.append(el("path", { class: "front", d: corners.join("") + `V${H - M.bottom}` }));
      }
      for (const p of shown) {
        if (p.x_ci) whisker(svg, x.at(x.inside(p.x_ci[0])), y.at(p.y), x.at(x.inside(p.x_ci[1])), y.at(p.y), p.method);
        if (p.y_ci) whisker(svg, x.at(p.x), y.at(y.inside(p.y_ci[0])), x.at(p.x), y.at(y.inside(p.y_ci[1])), p.method);
      }
      for (const p of shown) svg.append(symbol(p.method, x.at(p.x), y.at(p.y)));
      labels(svg, shown.map((p) => ({ text: p.method, x: x.at(p.x), y: y.at(p.y), strong: p.front })));
      plot.replaceChildren(svg, legend(shown.map((p) => p.method)), dataTable(`Erase and keep, ${select.value}`,
        ["method", "kind", "forgotten", "95 %", "kept", "95 %", "Pareto front"],
        points.map((p) => [p.method, kinds[p.role], percent(p.x), span(p.x_ci, percent), percent(p.y), span(p.y_ci, percent), p.front ? "on it" : ""])));
    }
    draw();
  }

  /* --- headline axes --- */
  function headlineScale(figure, points) {
    const ends = points.flatMap((p) => [p.headline, ...(p.ci || [])]);
    const low = figure.rate ? 0 : Math.min(...ends), high = figure.rate ? Math.max(1, ...ends) : Math.max(...ends);
    const pad = figure.rate ? 0 : (high - low || 1) * 0.06;
    return scale(low - pad, high + pad, H - M.bottom, M.top);
  }
  const headlineText = (figure) => figure.rate ? percent : tell;
  const headlineName = (figure) => `${figure.headline}${figure.rate ? ", %" : ""} (${figure.direction === "up" ? "high" : "low"} is good)`;

  /* --- headline against the number of concepts --- */
  function concepts(box) {
    const figure = figures.concepts, { points, lines } = figure;
    const counts = [...new Set(points.map((p) => p.n))].sort((a, b) => a - b);
    const log = counts.at(-1) / counts[0] >= 10, edge = 1.6, margin = counts.length > 1 ? (counts.at(-1) - counts[0]) * 0.15 : 0.6;
    const low = log ? counts[0] / edge : counts[0] - margin, high = log ? counts.at(-1) * edge : counts.at(-1) + margin;
    const x = { ...scale(low, high, M.left, W - M.right, log), ticks: counts }, y = headlineScale(figure, points), text = headlineText(figure);
    const svg = frame("Headline against the number of erased concepts; the numbers are in the table below", x, y,
      "concepts erased at once", headlineName(figure), String, (v) => tell(figure.rate ? 100 * v : v));
    // Methods stand side by side where they would lie on each other, within a fifth of the way to the next count.
    const methods = lines.map((l) => l.method), gaps = counts.slice(1).map((n, i) => x.at(n) - x.at(counts[i]));
    const room = Math.min(18, (gaps.length ? Math.min(...gaps) : 500) * 0.2 / Math.max(1, methods.length - 1));
    const place = (n, method) => x.at(n) + (methods.indexOf(method) - (methods.length - 1) / 2) * room;
    for (const line of lines) {
      if (line.means.length < 2) continue;
      const d = line.means.map(([n, v], i) => `${i ? "L" : "M"}${place(n, line.method)},${y.at(v)}`).join("");
      svg.append(el("path", { d, style: `fill:none;stroke:${looks.get(line.method).colour};stroke-width:2${line.role === "control" ? ";stroke-dasharray:3 4" : ""}` }));
    }
    for (const p of points) {
      const at = place(p.n, p.method);
      if (p.ci) whisker(svg, at, y.at(p.ci[0]), at, y.at(p.ci[1]), p.method);
      svg.append(symbol(p.method, at, y.at(p.headline)));
    }
    const only = counts.length === 1 ? el("p", {}, `Every request of this suite erases ${counts[0]} concept${counts[0] > 1 ? "s" : ""}.`) : null;
    box.append(...[only, svg, legend(methods), dataTable("Headline against the number of concepts", ["method", "request", "concepts", figure.headline, "95 %"],
      points.map((p) => [p.method, p.request, p.n, text(p.headline), span(p.ci, text)]))].filter(Boolean));
  }

  /* --- interference --- */
  function interference(box) {
    const { methods, requests, columns } = figures.interference, plot = el("div");
    const { box: chooser, select } = menu("Method", Object.keys(methods).map((m) => [m, m]), () => draw());
    box.append(el("div", { class: "tools" }, chooser), plot);
    const signed = (v) => (v > 0.0005 ? "+" : v < -0.0005 ? "−" : "") + Math.abs(100 * v).toFixed(0);
    function draw() {
      const cells = new Map(methods[select.value].map((c) => [`${c.request}\n${c.concept}`, c]));
      const used = columns.filter((c) => requests.some((r) => cells.has(`${r}\n${c}`)));
      plot.replaceChildren(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Interference of ${select.value}` },
        el("table", { class: "matrix" }, el("caption", {}, `${select.value}: change of accuracy in points`),
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "request"), used.map((c) => el("th", { scope: "col" }, c)))),
          el("tbody", {}, requests.map((r) => el("tr", {}, el("th", { scope: "row" }, r), used.map((c) => square(cells.get(`${r}\n${c}`)))))))));
    }
    function square(c) {
      if (!c) return el("td", {}, el("span", { "aria-label": "not measured" }, "·"));
      const share = Math.min(1, Math.abs(c.change)) * 65;
      return el("td", { class: c.erased ? "self" : null, style: `background:color-mix(in srgb, var(${c.change < 0 ? "--neg" : "--pos"}) ${share.toFixed(0)}%, var(--paper))`,
        title: `${c.concept}: ${percent(c.acc)}, unedited ${percent(c.unedited)}, ${c.n} images` }, signed(c.change));
    }
    draw();
  }

  /* --- cost --- */
  const seconds = (v) => v === null ? "–" : v < 0.001 ? "< 1 ms" : v < 1 ? `${tell(Number((1000 * v).toPrecision(3)))} ms` : v < 120 ? `${tell(Number(v.toPrecision(3)))} s` : `${tell(Number((v / 60).toPrecision(3)))} min`;
  const short = (v) => v < 1000 ? String(v) : v < 1e6 ? `${v / 1000}k` : `${v / 1e6}M`;
  function cost(box) {
    const figure = figures.cost, { points, timed, machine } = figure, by = timed ? "seconds" : "denoiser_forwards", text = headlineText(figure);
    const drawn = points.filter((p) => p.headline !== null && p[by] !== null && p[by] > 0);
    if (drawn.length) {
      const spent = drawn.map((p) => p[by]);
      const x = scale(Math.min(...spent) / 1.6, Math.max(...spent) * 1.6, M.left, W - M.right, true), y = headlineScale(figure, drawn);
      const svg = frame("Headline against the cost of an edit; the numbers are in the table below", x, y,
        timed ? "one edit, logarithmic" : "denoiser samples forward of one edit, logarithmic", headlineName(figure), timed ? seconds : short, (v) => tell(figure.rate ? 100 * v : v));
      for (const p of drawn) if (p.ci) whisker(svg, x.at(p[by]), y.at(p.ci[0]), x.at(p[by]), y.at(p.ci[1]), p.method);
      for (const p of drawn) svg.append(symbol(p.method, x.at(p[by]), y.at(p.headline)));
      box.append(svg, legend([...new Set(drawn.map((p) => p.method))]));
    }
    const where = [machine.device, machine.cpu, machine.threads ? `${machine.threads} threads` : ""].filter(Boolean).join(", ");
    box.append(el("p", {}, timed ? `Timed on: ${where || "a machine that is not named"}.` : "Times are not here (costs.json is missing); counts are."));
    box.append(dataTable("Cost of each edit", ["method", "request", figure.headline || "headline", "edit", "forwards", "backwards", "texts", "an image", "peak memory"],
      points.map((p) => [p.method, p.request, p.headline === null ? "–" : text(p.headline), seconds(p.seconds), tell(p.denoiser_forwards), tell(p.denoiser_backwards),
        tell(p.text_encodes), seconds(p.image_seconds), p.peak_bytes ? `${(p.peak_bytes / 1e9).toFixed(2)} GB` : "–"])));
  }

  const drawers = { erase_keep: eraseKeep, concepts, interference, cost };
  for (const box of document.querySelectorAll("[data-figure]")) {
    const name = box.dataset.figure;
    if (figures[name].reason) box.append(el("p", {}, `Not drawn: ${figures[name].reason}.`));
    else drawers[name](box);
  }
})();
