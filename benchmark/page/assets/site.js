"use strict";
/* What all pages share: data that arrives as scripts, elements without markup in strings, theme, what was asked to be shown. */
window.erasureBench = (() => {
  const SVG = "http://www.w3.org/2000/svg"; // a name, not an address: nothing is asked for
  const there = new Map(), loading = new Map();

  /* Called by data/*.js. */
  const put = (name, value) => { there.set(name, value); };
  const get = (name) => there.get(name);

  /* The data of this name; its script is loaded once. */
  function load(name) {
    if (there.has(name)) return Promise.resolve(there.get(name));
    if (!loading.has(name)) {
      loading.set(name, new Promise((done, fail) => {
        const script = document.createElement("script");
        script.src = "data/" + name.split("/").map(encodeURIComponent).join("/") + ".js";
        script.onload = () => there.has(name) ? done(there.get(name)) : fail(new Error(name + " holds nothing"));
        script.onerror = () => { loading.delete(name); fail(new Error("cannot load data/" + name + ".js")); };
        document.head.append(script);
      }));
    }
    return loading.get(name);
  }

  /* An element with attributes and children; texts become text, never markup. */
  function el(tag, attributes = {}, ...children) {
    const drawn = ["svg", "g", "path", "line", "circle", "text", "rect", "title"].includes(tag);
    const made = drawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
    return made;
  }

  /* Session storage where there is one; it ends with the visit. */
  function kept(name, value) {
    try {
      if (value === undefined) return sessionStorage.getItem("erasure-bench:" + name);
      sessionStorage.setItem("erasure-bench:" + name, value);
    } catch { /* private windows may have none */ }
    return null;
  }
  let asked;
  try { asked = new Set(JSON.parse(kept("shown") || "[]")); } catch { asked = new Set(); }
  const shown = (id) => asked.has(id);
  const show = (id) => { asked.add(id); kept("shown", JSON.stringify([...asked])); };

  function theme(name) {
    if (name === "light" || name === "dark") document.documentElement.dataset.theme = name;
  }
  theme(kept("theme"));
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const now = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
      const next = now === "dark" ? "light" : "dark";
      theme(next);
      kept("theme", next);
    });
  });

  /* A number as people read it: four digits at most. */
  function tell(value) {
    if (value === null || value === undefined) return "–";
    return typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value);
  }
  return { put, get, load, el, shown, show, tell };
})();
