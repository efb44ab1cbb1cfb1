// What was selected: the list, and files of it.

import {area} from './pen.js';

export function bounds(ring) {
  const xs = ring.map(([x]) => x);
  const ys = ring.map(([, y]) => y);
  const [x, y] = [Math.min(...xs), Math.min(...ys)];
  return [x, y, Math.max(...xs) - x, Math.max(...ys) - y];
}

export function described(shape) {
  const size = shape.mpp
    ? `${(area(shape.ring) * shape.mpp ** 2 / 1e6).toFixed(4)} mm²`
    : `${area(shape.ring)} px²`;
  return `${shape.kind === 'rectangle' ? 'Rectangle' : 'Polygon'} ` +
    `${shape.number}, ${size}`;
}

// As QuPath reads it: one file a slide, counted from the scanned part's corner.
export function geojson(shapes, slide) {
  const [left, top] = slide.bounds;
  const features = shapes.map((shape) => ({
    type: 'Feature',
    geometry: {
      type: 'Polygon',
      coordinates: [[...shape.ring, shape.ring[0]].map(
        ([x, y]) => [x - left, y - top])],
    },
    properties: {
      objectType: 'annotation',
      name: described(shape),
      classification: {name: shape.what, color: [255, 212, 0]},
      metadata: {slide_id: slide.id, made_by: 'wsiseq_jax'},
    },
  }));
  return JSON.stringify({type: 'FeatureCollection', features}, null, 1);
}

const HEADING = [
  'slide_id', 'what', 'number', 'kind', 'x0', 'y0', 'w0', 'h0', 'area_um2',
  'polygon',
];

// All slides in one table; places in level-0 pixels from the corner (0, 0).
export function csv(shapes) {
  const rows = shapes.map((shape) => [
    shape.slide, shape.what, shape.number, shape.kind, ...bounds(shape.ring),
    shape.mpp ? (area(shape.ring) * shape.mpp ** 2).toFixed(2) : '',
    shape.ring.map((point) => point.join(' ')).join(' '),
  ]);
  return [HEADING, ...rows].map((row) => row.map(cell).join(',')).join('\n') +
    '\n';
}

function cell(value) {
  // A spreadsheet takes some texts for formulas.
  const text = String(value).replace(/^([=+@-])(?=\D)/, "'$1");
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function save(name, text, type) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
