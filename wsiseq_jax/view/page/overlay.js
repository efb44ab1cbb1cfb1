// Everything that lies on a slide, drawn on one canvas over it.

const MOST_POINTS = 60000; // more are drawn as density
const MOST_FILLS = 3000;
const BUCKETS = 64;
const DENSITY = 384; // cells of the longer side

export class Overlay {
  constructor(viewer, slide) {
    this.viewer = viewer;
    this.slide = slide;
    this.items = []; // {content, opacity} of layers, bottom first
    this.marks = []; // {ring, kind}: 'selected', 'shape', 'hit', 'draft'
    this.canvas = document.createElement('canvas');
    this.canvas.className = 'over';
    this.canvas.setAttribute('aria-hidden', 'true');
    viewer.canvas.appendChild(this.canvas);
    viewer.addHandler('update-viewport', () => this.draw());
    viewer.addHandler('resize', () => this.draw());
  }

  // Level-0 pixels to pixels of the screen: x * scale + left.
  place() {
    const point = (x) => this.viewer.viewport.pixelFromPoint(
      new OpenSeadragon.Point(x, 0), true);
    const a = point(0);
    const scale = (point(1).x - a.x) / this.slide.size[0];
    return {scale, left: a.x, top: a.y};
  }

  draw() {
    const {canvas} = this;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (!width || !this.viewer.isOpen()) return;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const context = canvas.getContext('2d');
    const {scale, left, top} = this.place();
    const at = {
      context, scale: scale * ratio, left: left * ratio, top: top * ratio,
      width, height, ratio,
    };
    at.view = [
      -at.left / at.scale, -at.top / at.scale,
      (width - at.left) / at.scale, (height - at.top) / at.scale,
    ];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    for (const {content, opacity} of this.items) {
      context.globalAlpha = opacity;
      if (content.kind === 'picture') drawPicture(at, content);
      if (content.kind === 'shapes') drawShapes(at, content, opacity);
      if (content.kind === 'points') drawPoints(at, content);
    }
    context.globalAlpha = 1;
    for (const mark of this.marks) drawMark(at, mark);
  }
}

function drawPicture(at, {bitmap, downsample}) {
  const unit = downsample * at.scale;
  at.context.setTransform(1, 0, 0, 1, 0, 0);
  at.context.imageSmoothingEnabled = unit < 1;
  at.context.drawImage(
    bitmap, at.left, at.top, bitmap.width * unit, bitmap.height * unit);
}

function toSlide(at) {
  at.context.setTransform(at.scale, 0, 0, at.scale, at.left, at.top);
}

function isSeen(at, box) {
  const [x0, y0, x1, y1] = at.view;
  return box[0] < x1 && box[2] > x0 && box[1] < y1 && box[3] > y0;
}

function drawShapes(at, {shapes, classes}, opacity) {
  toSlide(at);
  const seen = shapes.filter((shape) => isSeen(at, shape.box));
  at.context.lineWidth = 2 * at.ratio / at.scale;
  for (const shape of seen) {
    const {colour} = classes[shape.class];
    if (seen.length <= MOST_FILLS) {
      at.context.globalAlpha = opacity * 0.3;
      at.context.fillStyle = colour;
      at.context.fill(shape.path, 'evenodd');
    }
    at.context.globalAlpha = opacity;
    at.context.strokeStyle = colour;
    at.context.stroke(shape.path);
  }
}

function drawPoints(at, points) {
  const {xy, starts, classes, grid} = points;
  const clip = (v, most) => Math.min(Math.max(Math.floor(v), 0), most);
  const [c0, r0, c1, r1] = at.view.map((v, i) =>
    clip(v / grid.side[i % 2], BUCKETS - 1));
  const count = classes.length;
  let seen = 0;
  for (let row = r0; row <= r1; row++) {
    for (let column = c0; column <= c1; column++) {
      const first = (row * BUCKETS + column) * count;
      seen += starts[first + count] - starts[first];
    }
  }
  if (seen > MOST_POINTS) {
    points.density ??= makeDensity(points);
    at.context.imageSmoothingEnabled = true;
    at.context.setTransform(1, 0, 0, 1, 0, 0);
    const {canvas, unit} = points.density;
    at.context.drawImage(canvas, at.left, at.top,
      canvas.width * unit * at.scale, canvas.height * unit * at.scale);
    return;
  }
  at.context.setTransform(1, 0, 0, 1, 0, 0);
  const radius = Math.max(1.5 * at.ratio, points.radius * at.scale);
  for (let number = 0; number < count; number++) {
    at.context.fillStyle = classes[number].colour;
    at.context.beginPath();
    for (let row = r0; row <= r1; row++) {
      for (let column = c0; column <= c1; column++) {
        const first = (row * BUCKETS + column) * count + number;
        for (let i = starts[first]; i < starts[first + 1]; i++) {
          const x = xy[2 * i] * at.scale + at.left;
          const y = xy[2 * i + 1] * at.scale + at.top;
          at.context.moveTo(x + radius, y);
          at.context.arc(x, y, radius, 0, 7);
        }
      }
    }
    at.context.fill();
  }
}

// Sorts points by place and class, so that what is in view is found at once.
export function sortPoints(xy, kinds, classes, size) {
  const side = size.map((v) => Math.max(1, v / BUCKETS));
  const bucket = (i) => {
    const at = [0, 1].map((k) => Math.min(
      Math.max(Math.floor(xy[2 * i + k] / side[k]), 0), BUCKETS - 1));
    return (at[1] * BUCKETS + at[0]) * classes.length + kinds[i];
  };
  const starts = new Uint32Array(BUCKETS * BUCKETS * classes.length + 1);
  const keys = new Uint32Array(kinds.length);
  for (let i = 0; i < kinds.length; i++) {
    keys[i] = bucket(i);
    starts[keys[i] + 1]++;
  }
  for (let i = 1; i < starts.length; i++) starts[i] += starts[i - 1];
  const next = starts.slice();
  const sorted = new Float32Array(xy.length);
  const order = new Uint8Array(kinds.length);
  for (let i = 0; i < kinds.length; i++) {
    const to = next[keys[i]]++;
    sorted[2 * to] = xy[2 * i];
    sorted[2 * to + 1] = xy[2 * i + 1];
    order[to] = kinds[i];
  }
  return {xy: sorted, kinds: order, starts, grid: {side}, size};
}

// Far out a million points are a cloud: colour of the kinds, depth of the log.
function makeDensity({xy, kinds, classes, size}) {
  const unit = Math.max(...size) / DENSITY;
  const [width, height] = size.map((v) => Math.max(1, Math.ceil(v / unit)));
  const total = new Float32Array(width * height);
  const mixed = new Float32Array(3 * width * height);
  const tints = classes.map(({colour}) => [1, 3, 5].map((i) =>
    parseInt(colour.slice(i, i + 2), 16)));
  for (let i = 0; i < kinds.length; i++) {
    const column = Math.floor(xy[2 * i] / unit);
    const row = Math.floor(xy[2 * i + 1] / unit);
    if (column < 0 || row < 0 || column >= width || row >= height) continue;
    const cell = row * width + column;
    total[cell]++;
    for (let k = 0; k < 3; k++) mixed[3 * cell + k] += tints[kinds[i]][k];
  }
  const most = total.reduce((a, b) => Math.max(a, b), 1);
  const canvas = document.createElement('canvas');
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext('2d');
  const image = context.createImageData(width, height);
  for (let cell = 0; cell < total.length; cell++) {
    if (!total[cell]) continue;
    for (let k = 0; k < 3; k++) {
      image.data[4 * cell + k] = mixed[3 * cell + k] / total[cell];
    }
    image.data[4 * cell + 3] =
      60 + 195 * Math.log1p(total[cell]) / Math.log1p(most);
  }
  context.putImageData(image, 0, 0);
  return {canvas, unit};
}

const MARKS = {
  selected: ['#ffd400', 3, []], shape: ['#ffd400', 2, [6, 4]],
  hit: ['#00e5ff', 3, []], draft: ['#ffd400', 2, [3, 3]],
};

function drawMark(at, {ring, kind}) {
  const [colour, width, dash] = MARKS[kind];
  const {context} = at;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.beginPath();
  ring.forEach(([x, y], i) => {
    const to = [x * at.scale + at.left, y * at.scale + at.top];
    if (i) context.lineTo(...to); else context.moveTo(...to);
  });
  if (kind !== 'draft' || ring.length > 2) context.closePath();
  // A dark rim: seen on glass and on tissue.
  for (const [ink, more] of [['#14141a', 3], [colour, 0]]) {
    context.strokeStyle = ink;
    context.setLineDash(more ? [] : dash.map((v) => v * at.ratio));
    context.lineWidth = (width + more) * at.ratio;
    context.stroke();
  }
  context.setLineDash([]);
}
