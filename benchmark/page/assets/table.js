"use strict";
/* Boards: sorting by any column, filters by method kind, model, protocol and request. */
(() => {
  const { el } = erasureBench;
  const byId = (id) => document.getElementById(id);
  const tables = [...document.querySelectorAll("table.board")];

  function sort(table, column, header) {
    const text = header.dataset.sort === "text";
    const first = header.dataset.sort === "down" ? "descending" : "ascending";
    const now = header.getAttribute("aria-sort");
    const next = now === null ? first : now === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const keyed = [...table.tBodies[0].rows].map((row) => [key(row.cells[column], text), row]);
    // What has no number stands last, whichever way.
    keyed.sort(([a], [b]) => a === null ? (b === null ? 0 : 1) : b === null ? -1
      : sign * (text ? a.localeCompare(b, undefined, { numeric: true }) : a - b));
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  }

  function key(cell, text) {
    if (!cell || cell.colSpan > 1) return null;
    if (text) return cell.textContent.trim();
    return cell.dataset.v ? Number(cell.dataset.v) : null;
  }

  for (const table of tables) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = el("button", { type: "button", title: header.title || null });
      button.append(...header.childNodes);
      button.addEventListener("click", () => sort(table, column, header));
      header.append(button);
    });
  }

  const chosen = (id) => byId(id) ? byId(id).value : "";
  function filter() {
    const kind = chosen("kind"), model = chosen("model"), protocol = chosen("protocol"), request = chosen("request");
    let shown = 0, all = 0;
    for (const box of document.querySelectorAll("[data-request]")) box.hidden = box.dataset.request !== request;
    for (const table of tables) {
      for (const row of table.tBodies[0].rows) {
        row.hidden = (kind && row.dataset.kind !== kind) || (model && row.dataset.model !== model);
        const counts = !table.closest("[hidden]");
        all += counts;
        shown += counts && !row.hidden;
      }
      for (const cell of table.querySelectorAll("[data-protocol]")) {
        cell.hidden = protocol !== "" && cell.dataset.protocol !== protocol;
      }
    }
    byId("count").textContent = shown === all ? `${all} rows` : `${shown} of ${all} rows`;
  }
  for (const id of ["kind", "model", "protocol", "request"]) {
    if (byId(id)) byId(id).addEventListener("change", filter);
  }
  if (byId("request")) {
    const visible = document.querySelector("[data-request]:not([hidden])");
    if (visible) byId("request").value = visible.dataset.request;
  }
  filter();

  /* Bring the row of an anchor into view, in whichever request it stands. */
  erasureBench.row = (anchor) => {
    const row = byId(anchor);
    if (!row || row.tagName !== "TR") return null;
    const box = row.closest("[data-request]");
    if (box && box.hidden) {
      byId("request").value = box.dataset.request;
      filter();
    }
    for (const other of document.querySelectorAll("tr.here")) other.classList.remove("here");
    row.classList.add("here");
    row.scrollIntoView({ block: "center" });
    return row;
  };
})();
