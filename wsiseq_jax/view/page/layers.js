// Layers of a slide: fetched when switched on, faded by everybody's choice.

import {ask} from './net.js';
import {sortPoints} from './overlay.js';

// What is on, and how opaque, for all slides alike: name -> 0 to 1.
export const shown = new Map();
export const FADED = 0.6;

export async function load(slide, layer) {
  const path = `/api/slides/${slide.key}/layers/${layer.name}`;
  const answer = await ask(path);
  if (layer.kind === 'picture') {
    const bitmap = await createImageBitmap(await answer.blob());
    const downsample = Number(answer.headers.get('x-level0-per-px'));
    return {kind: 'picture', bitmap, downsample};
  }
  if (layer.kind === 'shapes') {
    const {classes, shapes} = await answer.json();
    return {kind: 'shapes', classes, shapes: shapes.map(withPath)};
  }
  return points(await answer.arrayBuffer(), slide.size);
}

function withPath(shape) {
  const path = new Path2D();
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (const ring of shape.rings) {
    for (let i = 0; i < ring.length; i += 2) {
      if (i) path.lineTo(ring[i], ring[i + 1]);
      else path.moveTo(ring[i], ring[i + 1]);
      box[0] = Math.min(box[0], ring[i]);
      box[1] = Math.min(box[1], ring[i + 1]);
      box[2] = Math.max(box[2], ring[i]);
      box[3] = Math.max(box[3], ring[i + 1]);
    }
    path.closePath();
  }
  return {...shape, path, box};
}

function points(data, size) {
  const length = new DataView(data).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(
    new Uint8Array(data, 4, length)));
  const xy = new Float32Array(data, 4 + length, 2 * head.count);
  const kinds = new Uint8Array(data, 4 + length + xy.byteLength, head.count);
  const sorted = sortPoints(xy, kinds, head.classes, size);
  return {kind: 'points', radius: head.radius, classes: head.classes, ...sorted};
}

// The list of layers beside the slide.
export function list(element, pane, changed) {
  element.replaceChildren();
  if (!pane.slide.layers.length) {
    element.textContent = 'Nothing lies on this slide.';
    return;
  }
  for (const layer of pane.slide.layers) {
    const row = document.createElement('div');
    row.className = 'layer';
    const label = document.createElement('label');
    const box = document.createElement('input');
    box.type = 'checkbox';
    box.name = layer.name;
    box.checked = shown.has(layer.name);
    label.append(box, layer.title);
    const fade = document.createElement('input');
    fade.type = 'range';
    fade.max = 1;
    fade.step = 0.05;
    fade.value = shown.get(layer.name) ?? FADED;
    fade.hidden = !box.checked;
    fade.setAttribute('aria-label', `Opacity of ${layer.title}`);
    const change = () => {
      fade.hidden = !box.checked;
      if (box.checked) shown.set(layer.name, Number(fade.value));
      else shown.delete(layer.name);
      changed();
    };
    box.addEventListener('change', change);
    fade.addEventListener('input', change);
    const legend = document.createElement('ul');
    legend.dataset.legend = layer.name;
    row.append(label, fade, legend);
    element.append(row);
    legendOf(element, layer.name, pane.contents.get(layer.name));
  }
}

export function legendOf(element, name, content) {
  const legend = element.querySelector(`[data-legend="${name}"]`);
  if (!legend || !content) return;
  const classes = shown.has(name) ? content.classes ?? [] : [];
  legend.replaceChildren(...classes.slice(0, 40).map((one) => {
    const item = document.createElement('li');
    const swatch = document.createElement('i');
    swatch.style.background = one.colour;
    item.append(swatch, one.name);
    return item;
  }));
}
