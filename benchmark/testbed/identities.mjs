// Portraits of the invented people of identities.json, as SVG, on stdout:
//   node identities.mjs NODE_MODULES  ->  JSON list of {name, icon, svg}
// Design: Open Peeps by Pablo Stanley, CC0 1.0, drawn by @dicebear (MIT).
// Hair and skin, hat, beard and glasses are fixed; face and clothing vary.

import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [nodeModules] = process.argv.slice(2);
const load = (name) =>
  import(pathToFileURL(resolve(nodeModules, name, "lib", "index.js")).href);

const { createAvatar } = await load("@dicebear/core");
const peeps = await load("@dicebear/open-peeps");
const traits = JSON.parse(
  readFileSync(new URL("identities.json", import.meta.url), "utf8"),
);

// The design's groups in drawing order; most of its hair is plain black, so
// hair, hats and beards are recoloured here, inside their own groups only.
const HEAD = '<g transform="matrix(.99789 0 0 1 156 62)">';
const FACE = '<g transform="translate(315 248)">';
const BEARD = '<g transform="translate(279 400)">';
const MASK = '<g transform="translate(179 343)">';

function recolour(svg, from, to, change) {
  const [start, end] = [svg.indexOf(from), svg.indexOf(to)];
  if (start < 0 || end < start) {
    throw new Error(`expected the group ${from} in the design, found none`);
  }
  return svg.slice(0, start) + change(svg.slice(start, end)) + svg.slice(end);
}

const blackTo = (colour) => (part) =>
  part.replaceAll(/#0{3}(0{3})?(?=")/g, `#${colour}`);

// A closer crop than the design's 704 units: faces are seen at 64 pixels.
const closer = (svg) => svg.replace('viewBox="0 0 704 704"', 'viewBox="70 40 640 640"');

function optional(value) {
  return { value: value ? [value] : [], probability: value ? 100 : 0 };
}

function options(person, face, clothing) {
  const [accessory, beard] = [optional(person.accessory), optional(person.beard)];
  return {
    seed: "fixed",
    head: [person.head],
    face: [face],
    skinColor: [person.skin],
    headContrastColor: [person.hair],
    clothingColor: [clothing],
    accessories: accessory.value,
    accessoriesProbability: accessory.probability,
    facialHair: beard.value,
    facialHairProbability: beard.probability,
    maskProbability: 0,
  };
}

function portrait(person, face, clothing) {
  const svg = createAvatar(peeps, options(person, face, clothing)).toString();
  const hat = (part) => part.replaceAll(`#${clothing}`, `#${person.hat ?? clothing}`);
  const head = recolour(svg, HEAD, FACE, (part) => blackTo(person.hair)(hat(part)));
  return closer(recolour(head, BEARD, MASK, blackTo(person.hair)));
}

const drawings = Object.entries(traits.people).flatMap(([name, person]) =>
  traits.faces.flatMap((face) =>
    traits.clothing.map((clothing) => ({
      name,
      icon: `${face}-${clothing}`,
      svg: portrait(person, face, clothing),
    })),
  ),
);
process.stdout.write(JSON.stringify(drawings));
