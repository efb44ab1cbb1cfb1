// Drawing a rectangle or a polygon over a slide.

// Returns a promise of the ring, in level-0 pixels, or null if it was given up.
// `tool` is 'rectangle' or 'polygon'; abort `signal` to give it up.
export function draw(pane, tool, signal) {
  return new Promise((done) => {
    const sheet = document.createElement('div');
    sheet.className = 'pen';
    sheet.tabIndex = 0;
    sheet.setAttribute('role', 'application');
    sheet.setAttribute('aria-label', tool === 'rectangle'
      ? 'Drag a rectangle; Escape ends'
      : 'Click corners, Enter closes; Backspace takes one back; Escape ends');
    let ring = [];
    let start = null;
    const show = (points) => {
      pane.marks.draft = points.length > 1 ? points : null;
      pane.redraw();
    };
    const end = (result) => {
      sheet.remove();
      show([]);
      done(result && area(result) > 0 ? clipped(result, pane.slide.size) : null);
    };
    signal.addEventListener('abort', () => end(null));
    sheet.addEventListener('pointerdown', (event) => {
      if (event.button) return;
      sheet.setPointerCapture(event.pointerId);
      const at = pane.toSlide(event);
      if (tool === 'rectangle') start = at;
      else show(ring = [...ring, at]);
    });
    sheet.addEventListener('pointermove', (event) => {
      const at = pane.toSlide(event);
      pane.point(event);
      if (start) show(box(start, at));
      else if (ring.length) show([...ring, at]);
    });
    sheet.addEventListener('pointerup', (event) => {
      if (start) end(box(start, pane.toSlide(event)));
    });
    sheet.addEventListener('pointercancel', () => end(null));
    sheet.addEventListener('dblclick', () => end(ring));
    sheet.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') end(null);
      if (event.key === 'Enter') end(ring);
      if (event.key === 'Backspace') show(ring = ring.slice(0, -1));
    });
    // The wheel goes on zooming.
    sheet.addEventListener('wheel', (event) => {
      event.preventDefault();
      const {x, y, z} = pane.view();
      const [px, py] = pane.toSlide(event);
      const factor = 1.2 ** Math.sign(event.deltaY);
      pane.go({
        x: px + (x - px) * factor, y: py + (y - py) * factor, z: z * factor,
      }, true);
    }, {passive: false});
    pane.parts.stage.append(sheet);
    sheet.focus();
  });
}

export function box([x0, y0], [x1, y1]) {
  const [left, right] = x0 < x1 ? [x0, x1] : [x1, x0];
  const [top, bottom] = y0 < y1 ? [y0, y1] : [y1, y0];
  return [[left, top], [right, top], [right, bottom], [left, bottom]];
}

export function area(ring) {
  let sum = 0;
  ring.forEach(([x, y], i) => {
    const [nx, ny] = ring[(i + 1) % ring.length];
    sum += x * ny - nx * y;
  });
  return Math.abs(sum) / 2;
}

function clipped(ring, [width, height]) {
  const round = (v, most) => Math.round(Math.min(Math.max(v, 0), most));
  const inside = ring.map(([x, y]) => [round(x, width), round(y, height)]);
  return area(inside) > 0 ? inside : null;
}
