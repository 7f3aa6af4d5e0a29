"use strict";
/* The image explorer: only the rows in view exist, so that tens of thousands of images stay light. */
(() => {
  const { el, get, load, shown, show, tell, details } = erasureBench;
  const box = document.getElementById("explorer");
  if (!box) return;
  const byId = (id) => document.getElementById(id);
  const run = box.dataset.run, about = get(run), grid = byId("grid");
  const PRINTED = 40, BEYOND = 3;
  let groups = [], rows = [], columns = [], every = [], active = { r: 0, c: 0 }, rowHeight = 148, drawn = new Map(), body = null, printing = false;

  const BAD = { erased: true, synonym: true }, GOOD = { kept: true, adjacent: true };
  const text = (g, name, i) => g.texts[name][g.rows[name][i]];
  const column = (row, id) => row.g.byId.get(id);
  const base = (g) => g.columns.find((c) => c.role === "baseline");

  /* --- what is in a cell --- */
  function state(row, c) {
    const { g, i } = row;
    if (!c || c.valid[i] === "-") return "absent";
    const value = c.values[g.primary] ? c.values[g.primary][i] : null;
    if (c.valid[i] === "0" || value === null) return "unscored";
    return g.decides ? (value >= 0.5 ? "found" : "missed") : "valued";
  }
  function failed(row, c, kind) {
    if (!c) return false;
    const role = text(row.g, "role", row.i), what = state(row, c);
    if (kind === "found") return role in BAD && what === "found";
    if (kind === "lost") return role in GOOD && what === "missed" && state(row, base(row.g)) === "found";
    return what === "unscored";
  }
  function verdict(row, c) {
    const role = text(row.g, "role", row.i), what = state(row, c);
    if (what === "absent") return ["plain", "no image"];
    if (what === "unscored") return ["plain", "? not scored"];
    const value = c.values[row.g.primary][row.i];
    if (what === "valued") return ["plain", tell(value)];
    const found = what === "found", number = value === 0 || value === 1 ? "" : ` ${tell(value)}`;
    const name = (found ? "found" : "not found") + number;
    if (c.role === "baseline" || !(role in BAD || role in GOOD)) return ["plain", name];
    return found === (role in GOOD) ? ["good", "✓ " + name] : ["bad", "✗ " + name];
  }
  const imageId = (row, c) => `${run}:${c.thumb[row.i]}`;
  const veiled = (row, c) => row.g.explicit && c.thumb[row.i] >= 0 && !shown(imageId(row, c));

  /* One thumbnail: its sheet as background, moved to its tile. In percent, so that it has any size. */
  function layer(number) {
    const per = about.side ** 2, sheet = Math.floor(number / per), at = number % per;
    return { url: `url("${about.folder}/${sheet}.webp")`, x: at % about.side, y: Math.floor(at / about.side), rows: about.rows[sheet] };
  }
  function picture(numbers) {
    const pic = el("span", { class: about.tile <= 96 ? "pic small" : "pic" });
    const layers = numbers.map(layer), style = pic.style;
    style.backgroundImage = layers.map((l) => l.url).join(",");
    style.backgroundSize = layers.map((l) => `${100 * about.side}% ${100 * l.rows}%`).join(",");
    style.backgroundPosition = layers.map((l) => `${100 * l.x / (about.side - 1)}% ${l.rows > 1 ? 100 * l.y / (l.rows - 1) : 0}%`).join(",");
    if (layers.length > 1) { style.backgroundBlendMode = "difference"; style.filter = "brightness(2)"; }
    return pic;
  }
  function clip(row, c, difference, tag = "span", attributes = {}) {
    const number = c ? c.thumb[row.i] : -1, first = base(row.g), other = first ? first.thumb[row.i] : -1;
    const hidden = c && (veiled(row, c) || (difference && first && veiled(row, first)));
    const made = el(tag, { ...attributes, class: `clip${number < 0 ? " gone" : ""}${hidden ? " veiled" : ""}` });
    if (number >= 0 && !(difference && other < 0)) made.append(picture(difference && c !== first ? [number, other] : [number]));
    return made;
  }

  function tile(row, r, id, n) {
    const c = column(row, id), difference = byId("difference").checked;
    const [kind, said] = verdict(row, c), apart = c ? c.difference[row.i] : null;
    const name = c ? c.label : id, hidden = c && veiled(row, c) ? ", explicit, blurred: Enter shows it" : "";
    const where = `${name}: ${text(row.g, "role", row.i)} ${text(row.g, "concept", row.i)}: ${said.replace(/^[✓✗?] /, "")}`;
    const cell = el("div", { class: "tile", role: "gridcell", tabindex: r === active.r && n === active.c ? 0 : -1, "data-r": r, "data-c": n,
      "aria-colindex": n + 2, "aria-label": where + (apart === null ? "" : `, difference ${tell(apart)}`) + hidden },
    clip(row, c, difference), el("span", { class: `mark ${kind}` }, said));
    if (apart !== null && c.role !== "baseline") cell.append(el("span", { class: "diff" }, `Δ ${apart.toFixed(3)}`));
    return cell;
  }
  function line(r) {
    const row = rows[r], { g, i } = row;
    const made = el("div", { class: "gridrow", role: "row", "aria-rowindex": r + 2 },
      el("div", { class: "what", role: "rowheader" }, el("span", { class: "prompt", title: text(g, "prompt", i) }, text(g, "prompt", i)),
        el("span", { class: "soft" }, [text(g, "role", i), text(g, "concept", i), groups.length > 1 ? g.request : "", `seed ${g.rows.seed[i]}`].filter(Boolean).join(" · "))),
      columns.map((c, n) => tile(row, r, c.id, n)));
    made.style.top = `${r * rowHeight}px`;
    return made;
  }

  /* --- what is in view --- */
  function render(fresh = false) {
    if (!body) return;
    if (fresh) { for (const made of drawn.values()) made.remove(); drawn = new Map(); }
    const first = Math.max(0, Math.floor(grid.scrollTop / rowHeight) - BEYOND);
    const last = Math.min(rows.length, Math.ceil((grid.scrollTop + grid.clientHeight) / rowHeight) + BEYOND);
    const wanted = new Set();
    if (printing) for (let r = 0; r < Math.min(PRINTED, rows.length); r++) wanted.add(r);
    else for (let r = first; r < last; r++) wanted.add(r);
    if (rows.length && !printing) wanted.add(active.r); // the one cell that Tab reaches must exist
    for (const [r, made] of drawn) if (!wanted.has(r)) { made.remove(); drawn.delete(r); }
    for (const r of [...wanted].sort((a, b) => a - b)) {
      if (drawn.has(r)) continue;
      const made = line(r), next = [...drawn.keys()].filter((k) => k > r).sort((a, b) => a - b)[0];
      body.insertBefore(made, next === undefined ? null : drawn.get(next));
      drawn.set(r, made);
    }
  }
  function lay() {
    const style = getComputedStyle(document.documentElement);
    rowHeight = parseFloat(style.getPropertyValue("--row"));
    grid.setAttribute("role", "grid");
    grid.setAttribute("aria-label", "Images: a row for each prompt and seed, a column for each method");
    grid.setAttribute("aria-rowcount", rows.length + 1);
    grid.setAttribute("aria-colcount", columns.length + 1);
    body = el("div", { class: "gridbody", role: "rowgroup" });
    body.style.height = `${rows.length * rowHeight}px`;
    body.style.width = `max(100%, calc(${columns.length} * (var(--tile) + 16px)${matchMedia("(max-width: 640px)").matches ? "" : " + var(--label)"}))`;
    const head = el("div", { class: "gridhead", role: "row", "aria-rowindex": 1 }, el("div", { role: "columnheader" }, "prompt and seed"),
      columns.map((c, n) => el("div", { role: "columnheader", "aria-colindex": n + 2 }, c.label)));
    grid.replaceChildren(el("div", { role: "rowgroup", style: "display:contents" }, head), body);
    grid.tabIndex = rows.length ? -1 : 0;
    drawn = new Map();
    render();
  }

  /* --- filters --- */
  const chosen = (id) => byId(id).value;
  function fill(id, values, first) {
    const before = chosen(id);
    byId(id).replaceChildren(el("option", { value: "" }, first), ...values.map((v) => el("option", { value: v }, v || "none")));
    byId(id).value = values.includes(before) ? before : "";
  }
  function settle() {
    const found = new Map();
    for (const g of groups) for (const c of g.columns) if (!found.has(c.id)) found.set(c.id, { id: c.id, label: c.label, role: c.role });
    every = [...found.values()];
    const listed = (name) => [...new Set(groups.flatMap((g) => g.texts[name]))].filter((v) => v !== "");
    fill("role", listed("role"), "all roles");
    fill("concept", listed("concept").sort((a, b) => a.localeCompare(b, "en", { numeric: true })), "all concepts");
    const before = chosen("method"), judged = every.filter((c) => c.role !== "baseline");
    byId("method").replaceChildren(el("option", { value: "" }, "any method"), ...judged.map((c) => el("option", { value: c.id }, c.label)));
    byId("method").value = judged.some((c) => c.id === before) ? before : "";
    const without = groups.every((g) => !g.decides);
    for (const option of byId("failure").options) option.disabled = without && ["found", "lost"].includes(option.value);
  }
  function filter() {
    const role = chosen("role"), concept = chosen("concept"), failure = chosen("failure"), method = chosen("method");
    columns = every.filter((c) => c.role !== "control" || byId("controls").checked);
    rows = [];
    let all = 0;
    for (const g of groups) {
      for (let i = 0; i < g.rows.key.length; i++) {
        all++;
        if (role && text(g, "role", i) !== role) continue;
        if (concept && text(g, "concept", i) !== concept) continue;
        const row = { g, i };
        if (failure && !g.columns.some((c) => (method ? c.id === method : c.role === "erasure") && failed(row, c, failure))) continue;
        rows.push(row);
      }
    }
    active = { r: 0, c: Math.min(active.c, Math.max(0, columns.length - 1)) };
    grid.scrollTop = 0;
    const images = rows.reduce((n, row) => n + columns.filter((c) => column(row, c.id)).length, 0);
    byId("count").textContent = `${rows.length.toLocaleString("en")} of ${all.toLocaleString("en")} rows, ${images.toLocaleString("en")} images`;
    lay();
  }
  async function choose() {
    const wanted = chosen("request") ? about.requests.filter((r) => r.slug === chosen("request")) : about.requests;
    byId("count").textContent = "Loading…";
    try {
      groups = await Promise.all(wanted.map((r) => load(`${run}/${r.slug}`)));
    } catch (error) {
      byId("count").textContent = `${error.message}: is the whole folder here?`;
      return;
    }
    for (const g of groups) g.byId = new Map(g.columns.map((c) => [c.id, c]));
    settle();
    filter();
  }

  /* --- keyboard and pointer --- */
  function move(r, c, focus = true) {
    active = { r: Math.max(0, Math.min(rows.length - 1, r)), c: Math.max(0, Math.min(columns.length - 1, c)) };
    const top = active.r * rowHeight, head = grid.querySelector(".gridhead").offsetHeight;
    if (top < grid.scrollTop) grid.scrollTop = top;
    else if (top + rowHeight > grid.scrollTop + grid.clientHeight - head) grid.scrollTop = top + rowHeight - grid.clientHeight + head;
    render();
    for (const cell of grid.querySelectorAll('.tile[tabindex="0"]')) cell.tabIndex = -1;
    const cell = drawn.get(active.r).querySelectorAll(".tile")[active.c];
    cell.tabIndex = 0;
    if (focus) cell.focus({ preventScroll: true });
    const label = grid.querySelector(".what"), left = getComputedStyle(label).position === "sticky" ? label.offsetWidth : 0;
    if (cell.offsetLeft - left < grid.scrollLeft) grid.scrollLeft = cell.offsetLeft - left;
    else if (cell.offsetLeft + cell.offsetWidth > grid.scrollLeft + grid.clientWidth) grid.scrollLeft = cell.offsetLeft + cell.offsetWidth - grid.clientWidth;
  }
  grid.addEventListener("keydown", (event) => {
    if (!rows.length || event.ctrlKey || event.altKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(grid.clientHeight / rowHeight) - 1), { r, c } = active;
    const to = { ArrowDown: [r + 1, c], ArrowUp: [r - 1, c], ArrowRight: [r, c + 1], ArrowLeft: [r, c - 1], PageDown: [r + page, c], PageUp: [r - page, c],
      Home: [r, 0], End: [r, columns.length - 1] }[event.key];
    if (to) { event.preventDefault(); move(...to); }
    else if (event.key === "Enter" || event.key === " ") { event.preventDefault(); press(r, c); }
  });
  grid.addEventListener("click", (event) => {
    const cell = event.target.closest(".tile");
    if (!cell) return;
    move(Number(cell.dataset.r), Number(cell.dataset.c));
    press(active.r, active.c);
  });
  grid.addEventListener("scroll", () => render(), { passive: true });
  function refresh(r) {
    const old = drawn.get(r);
    if (!old) return;
    const made = line(r);
    old.replaceWith(made);
    drawn.set(r, made);
  }
  /* A blurred image is shown first, then opened. */
  function press(r, n) {
    const row = rows[r], c = column(row, columns[n].id);
    if (!c) return;
    if (veiled(row, c)) {
      show(imageId(row, c));
      refresh(r);
      move(r, n);
    } else open(row, c);
  }

  /* --- one image --- */
  async function open(row, c) {
    const { g, i } = row;
    const address = `#image/${g.slug}/${c.id}/${g.rows.key[i]}`;
    history.replaceState(null, "", address);
    const cell = await load(`${run}/cells/${c.cell}`);
    const first = base(g), again = () => open(row, c);
    details.from(() => { const r = rows.findIndex((x) => x.g === g && x.i === i); if (r >= 0) move(r, Math.max(0, columns.findIndex((x) => x.id === c.id))); });
    const panel = (name, of, difference) => {
      const hidden = of && (veiled(row, of) || (difference && veiled(row, first)));
      const attributes = hidden ? { type: "button", "aria-label": `Show the blurred image: ${name}`, onclick: () => { show(imageId(row, of)); if (difference) show(imageId(row, first)); refreshAll(); again(); } } : { role: "img", "aria-label": `${name}: ${text(g, "prompt", i)}` };
      return el("figure", {}, clip(row, of, difference, hidden ? "button" : "span", attributes), el("figcaption", {}, name));
    };
    const panels = el("div", { class: "panels" }, first ? panel("unedited", first, false) : null, c === first ? null : panel(c.label, c, false),
      c === first || !first ? null : panel("difference, twice as bright", c, true));
    const at = cell.stored[i], pairs = [["prompt", text(g, "prompt", i)], ["role", text(g, "role", i)], ["concept", text(g, "concept", i) || "–"], ["seed", g.rows.seed[i]],
      ["replicate", g.rows.replicate[i]], ["could be scored", c.valid[i] === "1" ? "yes" : "no"], ["mean difference to the unedited", tell(c.difference[i])],
      ["SHA-256 of the pixels", cell.image[i]], ["in the store", at ? `${cell.shards[at[0]]}/images.npy row ${at[1]}` : "not there"]];
    const scores = Object.keys(c.values).map((p) => [p + (p === g.primary ? " (primary)" : ""), `${tell(c.values[p][i])}${first && first.values[p] ? `, unedited ${tell(first.values[p][i])}` : ""}`]);
    details.open(details.head(`${c.label}, ${g.request}`, steps(row, c)),
      about.embedded ? el("p", { class: "tag" }, "embedded model: not comparable with papers' numbers") : null,
      panels, el("h3", {}, "Scores"), details.table(scores), el("h3", {}, "Image"), details.table(pairs), raws(cell, i), details.regenerate(cell),
      el("details", {}, el("summary", {}, "All of the cell"), details.told(cell)));
  }
  function refreshAll() { for (const r of [...drawn.keys()]) refresh(r); }
  function steps(row, c) {
    const r = rows.findIndex((x) => x.g === row.g && x.i === row.i), n = columns.findIndex((x) => x.id === c.id);
    const button = (name, label, dr, dn) => {
      const next = rows[r + dr], id = columns[n + dn], there = r >= 0 && n >= 0 && next && id && column(next, id.id);
      return el("button", { type: "button", "aria-label": label, disabled: !there, onclick: () => open(next, column(next, id.id)) }, name);
    };
    return [button("↑", "previous row", -1, 0), button("↓", "next row", 1, 0), button("←", "previous method", 0, -1), button("→", "next method", 0, 1)];
  }
  function raws(cell, i) {
    const found = cell.raw.filter((j) => j.stored[i]);
    if (!found.length) return [el("h3", {}, "Raw outputs"), el("p", {}, "Not in the store.")];
    return found.map((j) => [el("h3", {}, `Raw outputs of ${j.evaluator}`), details.table([...Object.entries(j.shapes).map(([name, shape]) =>
      [`${name}${shape.length ? ` (${shape.join(" × ")})` : ""}`, rawText(j, name, i)]), ["in the store", j.stored[i]]])]);
  }
  function rawText(j, name, i) {
    const value = j.values[name] ? j.values[name][i] : null;
    if (value === null) return "a vector: in the store";
    if (!Array.isArray(value)) return tell(value);
    if (!Array.isArray(value[0])) return value.map(tell).join(", ");
    const named = j.names[name];
    return "largest: " + value.map(([k, v]) => `${named ? named[k] : `[${k}]`} ${tell(v)}`).join(", ");
  }

  /* --- addresses --- */
  async function follow() {
    const parts = location.hash.slice(1).split("/");
    const slug = parts[0] === "image" || parts[0] === "rows" ? decodeURIComponent(parts[1] || "") : "";
    if (slug && about.requests.some((r) => r.slug === slug)) byId("request").value = slug;
    for (const id of ["role", "concept", "failure", "method"]) byId(id).value = "";
    await choose();
    if (parts[0] !== "image" || !groups.length) return;
    const g = groups[0], i = g.rows.key.indexOf(parts[3]), c = g.byId.get(decodeURIComponent(parts[2] || ""));
    if (i < 0 || !c) { byId("count").textContent += "; the image of this address is not among them"; return; }
    if (c.role === "control" && !byId("controls").checked) { byId("controls").checked = true; filter(); }
    move(rows.findIndex((row) => row.i === i), columns.findIndex((x) => x.id === c.id), false);
    open({ g, i }, c);
  }
  details.dialog.addEventListener("keydown", (event) => {
    if (event.target.closest("pre, select, input")) return;
    const name = { ArrowUp: "previous row", ArrowDown: "next row", ArrowLeft: "previous method", ArrowRight: "next method" }[event.key];
    const button = name && details.dialog.querySelector(`[aria-label="${name}"]`);
    if (button && !button.disabled) { event.preventDefault(); button.click(); }
  });

  if (byId("request").options[0].value === "" && about.requests.length) byId("request").value = about.requests[0].slug;
  byId("request").addEventListener("change", choose);
  for (const id of ["role", "concept", "failure", "method", "controls"]) byId(id).addEventListener("change", filter);
  byId("difference").addEventListener("change", () => render(true));
  addEventListener("hashchange", follow);
  addEventListener("resize", () => { if (body) lay(); });
  let told = "";
  addEventListener("beforeprint", () => {
    told = byId("count").textContent;
    if (rows.length > PRINTED) byId("count").textContent = `${told}; the first ${PRINTED} rows are printed`;
    printing = true;
    render(true);
  });
  addEventListener("afterprint", () => { byId("count").textContent = told; printing = false; render(true); });
  follow();
})();
