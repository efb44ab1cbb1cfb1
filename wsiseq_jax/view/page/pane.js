// One slide on the screen: deep zoom, layers, scale bar, where we are.

import {json} from './net.js';
import {load, shown} from './layers.js';
import {Overlay} from './overlay.js';
import {tileSource} from './source.js';

const NICE = [1, 2, 5];
const BAR_PX = 140;

export class Pane {
  // `told` is called with what people should hear of, and when the view rests.
  constructor(number, told) {
    this.number = number;
    this.told = told;
    this.slide = null;
    this.marks = {shapes: [], hit: null, draft: null};
    this.element = document.createElement('section');
    this.element.className = 'pane';
    this.element.innerHTML =
      '<div class="bar"><strong></strong><span class="view"></span>' +
      '<span class="at"></span></div><div class="stage"><div class="osd"></div>' +
      '<div class="scale" aria-hidden="true"><i></i><b></b></div></div>';
    const find = (name) => this.element.querySelector(name);
    this.parts = {
      title: find('strong'), view: find('.view'), at: find('.at'),
      osd: find('.osd'), bar: find('.scale i'), length: find('.scale b'),
      stage: find('.stage'),
    };
  }

  // Shows a slide; `view` is {x, y, z}: centre and level-0 px per screen px.
  async open(key, view) {
    if (this.slide?.key === key) {
      if (view) this.go(view);
      return;
    }
    const slide = await json(`/api/slides/${key}`);
    this.close();
    this.slide = slide;
    this.contents = new Map();
    this.lost = 0;
    this.element.setAttribute('aria-label', `Slide ${slide.id}`);
    this.parts.title.textContent = slide.id;
    const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
    this.viewer = new OpenSeadragon.Viewer({
      element: this.parts.osd,
      drawer: 'canvas', // the same on every machine, and can be read back
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: 'TOP_RIGHT',
      navigatorSizeRatio: 0.16,
      animationTime: still ? 0 : 0.5,
      maxZoomPixelRatio: 16,
      minZoomImageRatio: 0.8,
      visibilityRatio: 0.2,
      imageLoaderLimit: 8,
      maxImageCacheCount: 300,
      smoothTileEdgesMinZoom: Infinity,
      imageSmoothingEnabled: true,
      gestureSettingsMouse: {clickToZoom: false, dblClickToZoom: true},
    });
    const {viewer} = this;
    viewer.canvas.setAttribute('role', 'application');
    viewer.canvas.setAttribute('aria-label',
      `Slide ${slide.id}: arrow keys move, plus and minus zoom, 0 shows all`);
    viewer.addHandler('canvas-key', (event) => {
      // OpenSeadragon turns and flips slides at these keys; shapes would not.
      const {key} = event.originalEvent;
      if ('rRfF'.includes(key)) event.preventDefaultAction = true;
    });
    viewer.addHandler('tile-load-failed', () => {
      this.lost++;
      this.told('lost', this);
    });
    viewer.addHandler('animation-finish', () => this.told('rest', this));
    for (const name of ['update-viewport', 'resize']) {
      viewer.addHandler(name, () => this.measure());
    }
    viewer.addHandler('viewport-change', () => this.told('move', this));
    for (const name of ['canvas-press', 'canvas-scroll', 'canvas-key']) {
      viewer.addHandler(name, () => this.told('lead', this));
    }
    viewer.canvas.addEventListener('focus', () => this.told('lead', this));
    viewer.canvas.addEventListener('pointermove', (event) => this.point(event));
    await new Promise((done, failed) => {
      viewer.addOnceHandler('open', done);
      viewer.addOnceHandler('open-failed', () =>
        failed(new Error('this slide cannot be shown')));
      viewer.open(tileSource(slide));
    });
    this.overlay = new Overlay(viewer, slide);
    this.redraw();
    if (view) this.go(view, true);
    await this.fill();
  }

  close() {
    this.viewer?.destroy();
    this.viewer = null;
    this.overlay = null;
    this.slide = null;
    this.marks.hit = null;
    this.marks.draft = null;
  }

  // Where we are: {x, y} of the middle, z level-0 pixels per screen pixel.
  view() {
    const {viewport} = this.viewer;
    const [width] = this.slide.size;
    const centre = viewport.getCenter(true);
    const z = 1 / (viewport.getZoom(true) *
      viewport.getContainerSize().x / width);
    return {x: centre.x * width, y: centre.y * width, z};
  }

  go({x, y, z}, now = false) {
    const {viewport} = this.viewer;
    const [width] = this.slide.size;
    const centre = new OpenSeadragon.Point(x / width, y / width);
    viewport.zoomTo(width / viewport.getContainerSize().x / z, null, now);
    viewport.panTo(centre, now);
    viewport.applyConstraints(now);
  }

  home() {
    this.viewer.viewport.goHome();
  }

  // Flies to a box of level-0 pixels and leaves room around it.
  fly([x, y, w, h]) {
    const size = this.viewer.viewport.getContainerSize();
    const z = Math.max(3 * w / size.x, 3 * h / size.y, 0.25);
    this.go({x: x + w / 2, y: y + h / 2, z});
  }

  // What one level-0 pixel is worth, and the unit: µm where the scale is known.
  unit() {
    const {mpp} = this.slide;
    return mpp ? {worth: mpp, name: 'µm'} : {worth: 1, name: 'px'};
  }

  measure() {
    if (!this.overlay) return;
    const {z} = this.view();
    const {worth, name} = this.unit();
    const most = BAR_PX * z * worth;
    const ten = 10 ** Math.floor(Math.log10(most));
    const length = ten * NICE.filter((v) => v * ten <= most).pop();
    this.parts.bar.style.width = `${length / (z * worth)}px`;
    this.parts.length.textContent = name === 'µm' && length >= 1000
      ? `${length / 1000} mm` : `${Number(length.toPrecision(2))} ${name}`;
    const scale = z * worth;
    const times = 10 / scale;
    this.parts.view.textContent = name === 'µm'
      ? `${times.toFixed(times < 10 ? 2 : 1)}× · ${scale.toPrecision(3)} µm/px`
      : `${(1 / z).toPrecision(3)} of full size · scale unknown`;
  }

  point(event) {
    if (!this.overlay) return;
    const [x, y] = this.toSlide(event);
    const {worth, name} = this.unit();
    const um = name === 'µm'
      ? ` · ${Math.round(x * worth)}, ${Math.round(y * worth)} µm` : '';
    this.parts.at.textContent = `x ${Math.floor(x)}, y ${Math.floor(y)}${um}`;
  }

  // Level-0 pixels under a pointer.
  toSlide(event) {
    const box = this.parts.stage.getBoundingClientRect();
    const {scale, left, top} = this.overlay.place();
    return [
      (event.clientX - box.left - left) / scale,
      (event.clientY - box.top - top) / scale,
    ];
  }

  // Draws what is selected, what was found, and what is being drawn.
  redraw() {
    if (!this.overlay) return;
    const {shapes, hit, draft} = this.marks;
    this.overlay.marks = [
      ...shapes.filter(({key}) => key === this.slide.key),
      ...(hit ? [{ring: hit, kind: 'hit'}] : []),
      ...(draft ? [{ring: draft, kind: 'draft'}] : []),
    ];
    this.overlay.draw();
  }

  // Lays on the slide what is switched on, and fetches what is not there yet.
  async fill() {
    const {slide, overlay, contents} = this;
    if (!slide) return;
    const wanted = slide.layers.filter(({name}) => shown.has(name));
    const lay = () => {
      if (this.slide !== slide) return; // another was opened meanwhile
      overlay.items = wanted
        .filter(({name}) => contents.has(name))
        .map(({name}) => ({
          content: contents.get(name), opacity: shown.get(name) ?? 0,
        }));
      overlay.draw();
      this.told('layers', this);
    };
    lay();
    for (const layer of wanted) {
      if (contents.has(layer.name)) continue;
      try {
        contents.set(layer.name, await load(slide, layer));
      } catch (error) {
        this.told('error', this, `${layer.title}: ${error.message}`);
      }
      lay();
    }
  }
}
