"use strict";
/* The dialog that opens from a cell of a board or from an image: how it was made, what was seen, how to make it again. */
(() => {
  const { el, load, tell } = erasureBench;
  const dialog = document.getElementById("details");
  if (!dialog) return;
  const holder = document.querySelector("[data-run]");
  const run = holder.dataset.run;
  let back = null;

  function table(pairs) {
    return el("table", {}, el("tbody", {}, pairs.map(([name, value]) =>
      el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value instanceof Node ? value : String(value))))));
  }

  function head(title, buttons = []) {
    const link = el("button", { type: "button", onclick: copy(() => location.href) }, "Copy link");
    const close = el("button", { type: "button", class: "close", onclick: () => dialog.close() }, "Close");
    return el("div", { class: "bar-top" }, el("h2", { id: "details-h", tabindex: -1 }, title), buttons, link, close);
  }

  function copy(text) {
    return async (event) => {
      const button = event.currentTarget, name = button.textContent;
      try { await navigator.clipboard.writeText(text()); button.textContent = "Copied"; }
      catch { button.textContent = "Select and copy it"; }
      setTimeout(() => { button.textContent = name; }, 1500);
    };
  }

  function regenerate(cell) {
    return [el("h3", {}, "Make it again"), el("pre", {}, el("code", {}, cell.command)),
      el("p", {}, el("button", { type: "button", onclick: copy(() => cell.command) }, "Copy command"), " ",
        el("a", { href: cell.record }, "Record of the cell (JSON)"))];
  }

  /* Everything the record says, one part under the other. */
  function told(cell) {
    return cell.told.filter(([, pairs]) => pairs.length).map(([heading, pairs]) => [el("h3", {}, heading), table(pairs)]);
  }

  function open(...content) {
    dialog.replaceChildren(...content.flat(3).filter((part) => part !== null));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    dialog.querySelector("h2").focus();
  }

  async function cell(name, from) {
    back = from || null;
    const found = await load(`${run}/cells/${name}`);
    const seed = found.seed ? ` · training seed ${found.seed}` : "";
    open(head(`${found.method} on ${found.request}${seed}`),
      found.status === "ok" ? null : el("p", {}, `${found.status}: ${found.reason}`), regenerate(found), told(found));
  }

  dialog.addEventListener("close", () => {
    if (location.hash.startsWith("#image/")) history.replaceState(null, "", location.pathname + location.search);
    if (typeof back === "function") back(); else if (back && back.isConnected) back.focus();
    back = null;
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  for (const button of document.querySelectorAll("tr[data-cell] .open")) {
    button.addEventListener("click", () => {
      const row = button.closest("tr");
      history.replaceState(null, "", "#" + row.id);
      cell(row.dataset.cell, button);
    });
  }

  /* An address that names a row opens it. */
  function follow() {
    const anchor = decodeURIComponent(location.hash.slice(1));
    if (!anchor.startsWith("cell/") || !erasureBench.row) return;
    const row = erasureBench.row(anchor);
    if (row && row.dataset.cell) cell(row.dataset.cell, row.querySelector(".open"));
  }
  addEventListener("hashchange", follow);
  document.addEventListener("DOMContentLoaded", follow);

  erasureBench.details = { open, head, table, regenerate, told, tell, dialog, from: (where) => { back = where; } };
})();
