// The page: slides on the left, one or two in the middle, what is on them and
// what was found on the right.

import {Cohort} from './cohort.js';
import * as layers from './layers.js';
import {json} from './net.js';
import {Pane} from './pane.js';
import * as pen from './pen.js';
import * as shapes from './shapes.js';
import {Similar} from './similar.js';
import * as state from './state.js';

const at = (id) => document.getElementById(id);
const panes = [0, 1].map((number) => new Pane(number, told));
const drawn = []; // all shapes, of all slides
let active = panes[0];
let selected = null;
let counted = 0;
let linked = null; // how far apart the middles are, in units of `unit`
let following = false;
let drawing = null;
let similar = null;
let cohort = null;

function say(text, isBad = false) {
  at('say').textContent = text;
  at('say').classList.toggle('warn', isBad);
}

// What panes tell of.
function told(what, pane, text) {
  if (what === 'lead') activate(pane);
  if (what === 'move') follow(pane);
  if (what === 'rest') remember();
  if (what === 'error') say(text, true);
  if (what === 'lost') {
    say(`${pane.slide.id}: ${pane.lost} places cannot be read`, true);
  }
  if (what === 'layers' && pane === active) {
    for (const [name, content] of pane.contents) {
      layers.legendOf(at('layers'), name, content);
    }
  }
}

function activate(pane) {
  if (!pane.slide) return;
  const isNew = active !== pane || at('layers').dataset.key !== pane.slide.key;
  active = pane;
  for (const one of panes) {
    one.element.classList.toggle('active', isTwo() && one === pane);
  }
  cohort.mark(pane.slide.key);
  if (isNew) {
    at('layers').dataset.key = pane.slide.key;
    layers.list(at('layers'), pane, () => {
      for (const one of panes) one.fill();
      remember();
    });
  }
}

const isTwo = () => panes[1].element.isConnected;

async function open(pane, key, view) {
  try {
    await pane.open(key, view);
    pane.marks.shapes = marked();
    pane.redraw();
    activate(pane);
    say(`${pane.slide.id} is open`);
    remember();
    return true;
  } catch (error) {
    say(`${cohort.slides.find((s) => s.key === key)?.id ?? 'slide'}: ` +
      error.message, true);
    return false;
  }
}

// Two slides, and both zoom as one.

function compare(isOn) {
  at('compare').setAttribute('aria-pressed', isOn);
  at('link').disabled = !isOn;
  if (isOn) at('panes').append(panes[1].element);
  else {
    link(false);
    panes[1].close();
    panes[1].element.remove();
    if (panes[0].slide) activate(panes[0]);
  }
  remember();
}

function link(isOn) {
  const ready = isOn && panes.every((pane) => pane.slide);
  linked = null;
  if (ready) {
    const [a, b] = panes.map((pane) => inUnits(pane));
    linked = {x: b.x - a.x, y: b.y - a.y};
  }
  at('link').setAttribute('aria-pressed', Boolean(linked));
  if (isOn && !ready) say('Open a slide on both sides first', true);
  if (ready) follow(active);
  remember();
}

// In µm where both scales are known, else in pixels.
function inUnits(pane) {
  const isKnown = panes.every(({slide}) => slide.mpp);
  const worth = isKnown ? pane.slide.mpp : 1;
  const {x, y, z} = pane.view();
  return {x: x * worth, y: y * worth, z: z * worth, worth};
}

function follow(pane) {
  if (!linked || following || pane !== active) return;
  const other = panes[1 - pane.number];
  if (!other.overlay) return;
  const {x, y, z} = inUnits(pane);
  const {worth} = inUnits(other);
  const sign = pane.number ? -1 : 1;
  following = true;
  other.go({
    x: (x + sign * linked.x) / worth, y: (y + sign * linked.y) / worth,
    z: z / worth,
  }, true);
  following = false;
}

// Shapes.

function marked() {
  return drawn.map((shape) => ({
    key: shape.key, ring: shape.ring,
    kind: shape === selected ? 'selected' : 'shape',
  }));
}

function refresh() {
  for (const pane of panes) {
    pane.marks.shapes = marked();
    pane.redraw();
  }
  at('hint').hidden = drawn.length > 0;
  at('similar').disabled = !selected || !similar;
  for (const id of ['geojson', 'csv', 'clear']) at(id).disabled = !drawn.length;
  at('shapes').replaceChildren(...drawn.map((shape) => {
    const item = document.createElement('li');
    const choose = document.createElement('button');
    choose.textContent = `${shapes.described(shape)} · ${shape.slide}`;
    choose.setAttribute('aria-current', shape === selected);
    choose.addEventListener('click', async () => {
      selected = shape;
      if (await open(active, shape.key)) active.fly(shapes.bounds(shape.ring));
      refresh();
    });
    const remove = document.createElement('button');
    remove.textContent = '✕';
    remove.setAttribute('aria-label', `Remove ${shapes.described(shape)}`);
    remove.addEventListener('click', () => {
      drawn.splice(drawn.indexOf(shape), 1);
      if (selected === shape) selected = drawn.at(-1) ?? null;
      refresh();
    });
    item.append(choose, remove);
    return item;
  }));
}

function keep(kind, ring, what = 'selection') {
  const {slide} = active;
  selected = {
    number: ++counted, kind, ring, what,
    key: slide.key, slide: slide.id, mpp: slide.mpp,
  };
  drawn.push(selected);
  refresh();
  say(`${shapes.described(selected)} selected`);
}

async function usePen(tool) {
  drawing?.abort();
  if (at(tool).getAttribute('aria-pressed') === 'true' || !active.slide) return;
  const pane = active;
  drawing = new AbortController();
  at(tool).setAttribute('aria-pressed', true);
  say(tool === 'rectangle' ? 'Drag a rectangle; Escape ends'
    : 'Click the corners; Enter or a double click closes; Escape ends');
  const ring = await pen.draw(pane, tool, drawing.signal);
  at(tool).setAttribute('aria-pressed', false);
  drawing = null;
  if (ring) keep(tool, ring); else say('');
  pane.viewer?.canvas.focus();
}

function middle() {
  if (!active.slide) return;
  const {x, y, z} = active.view();
  const size = active.viewer.viewport.getContainerSize();
  const half = Math.min(size.x, size.y) * z / 4;
  const clip = (v, i) =>
    Math.round(Math.min(Math.max(v, 0), active.slide.size[i]));
  keep('rectangle', pen.box(
    [clip(x - half, 0), clip(y - half, 1)],
    [clip(x + half, 0), clip(y + half, 1)]));
}

// A hit: on its own slide, outlined; beside the question where there is room.
async function show(hit) {
  const pane = isTwo() ? panes[1] : panes[0];
  const box = [hit.x0, hit.y0, hit.w0, hit.h0];
  if (linked) link(false);
  if (!(await open(pane, hit.key))) return;
  outline(pane, box);
  pane.fly(box);
  say(`Hit on ${hit.slide_id}, outlined`);
}

function outline(pane, [x, y, w, h]) {
  for (const one of panes) one.marks.hit = null;
  pane.marks.hit = pen.box([x, y], [x + w, y + h]);
  for (const one of panes) one.redraw();
}

// The address.

let ours = '';

function remember() {
  ours = `#${state.format({panes, layers: layers.shown, linked})}`;
  history.replaceState(null, '', ours);
}

async function restore() {
  const wanted = state.parse(location.hash);
  layers.shown.clear();
  for (const [name, fade] of wanted.layers) layers.shown.set(name, fade);
  if (Boolean(wanted.panes[1]) !== isTwo()) compare(Boolean(wanted.panes[1]));
  for (const pane of [...panes].reverse()) {
    const one = wanted.panes[pane.number];
    if (one) await open(pane, one.key, one.view);
    if (pane.slide) await pane.fill();
  }
  if (wanted.box) {
    const [number, ...box] = wanted.box;
    if (panes[number]?.slide) outline(panes[number], box);
  }
  if (wanted.linked) link(true);
  remember();
}

async function start() {
  at('panes').append(panes[0].element);
  const {slides, search} = await json('/api/cohort');
  cohort = new Cohort(slides, (key) => open(active, key));
  if (search) similar = new Similar(show);
  at('similar').hidden = !search;
  at('home').addEventListener('click', () => active.slide && active.home());
  at('one').addEventListener('click', () => {
    if (!active.slide) return;
    const {x, y} = active.view();
    active.go({x, y, z: window.devicePixelRatio || 1});
  });
  at('compare').addEventListener('click', async () => {
    const isOn = !isTwo();
    compare(isOn);
    if (isOn && panes[0].slide) await open(panes[1], panes[0].slide.key);
  });
  at('link').addEventListener('click', () => link(!linked));
  at('copy').addEventListener('click', async () => {
    remember();
    try {
      await navigator.clipboard.writeText(location.href);
      say('The link is copied: it opens this view');
    } catch {
      say('The address bar has the link: it opens this view');
    }
  });
  for (const tool of ['rectangle', 'polygon']) {
    at(tool).addEventListener('click', () => usePen(tool));
  }
  at('middle').addEventListener('click', middle);
  at('similar').addEventListener('click', () => similar.ask(
    {slide: selected.key, polygon: selected.ring},
    shapes.described(selected).split(',')[0].toLowerCase()));
  at('geojson').addEventListener('click', async () => {
    for (const key of new Set(drawn.map((shape) => shape.key))) {
      const slide = await json(`/api/slides/${key}`);
      const mine = drawn.filter((shape) => shape.key === key);
      shapes.save(`${slide.id}.geojson`, shapes.geojson(mine, slide),
        'application/geo+json');
    }
  });
  at('csv').addEventListener('click', () =>
    shapes.save('selection.csv', shapes.csv(drawn), 'text/csv'));
  at('clear').addEventListener('click', () => {
    drawn.length = 0;
    selected = null;
    refresh();
  });
  window.addEventListener('hashchange', () => {
    if (location.hash !== ours) restore();
  });
  refresh();
  if (location.hash.length > 1) await restore();
  else if (slides.length) await open(panes[0], slides[0].key);
}

start().catch((error) => say(error.message, true));
