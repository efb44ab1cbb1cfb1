// The view as a link: what stands behind # in the address.
//
//   a, b    slides left and right: key,x,y,z (level-0 px; z px per screen px)
//   on      layers: name:opacity
//   link    1 if both zoom together
//   box     the hit that is outlined: pane,x,y,w,h

const decimals = (v) => Number(v.toFixed(v < 10 ? 4 : 1));

export function format({panes, layers, linked}) {
  const found = new URLSearchParams();
  panes.forEach((pane, i) => {
    if (!pane.slide) return;
    const {x, y, z} = pane.view();
    found.set('ab'[i], [pane.slide.key, ...[x, y, z].map(decimals)].join());
  });
  const on = [...layers].map(([name, fade]) => `${name}:${fade}`).join();
  if (on) found.set('on', on);
  if (linked) found.set('link', '1');
  panes.forEach((pane, i) => {
    const {hit} = pane.marks;
    if (!hit) return;
    const [[x, y], , [x1, y1]] = hit;
    found.set('box', [i, x, y, x1 - x, y1 - y].map(decimals).join());
  });
  return found.toString().replaceAll('%2C', ',').replaceAll('%3A', ':');
}

// What a link says; whatever is odd in it is left out.
export function parse(text) {
  const found = new URLSearchParams(text.replace(/^#/, ''));
  const numbers = (parts) => {
    const values = parts.map(Number);
    return values.every(Number.isFinite) ? values : null;
  };
  const panes = ['a', 'b'].map((name) => {
    const [key, ...rest] = (found.get(name) ?? '').split(',');
    if (!/^[0-9a-f]{16}$/.test(key)) return null;
    const values = rest.length === 3 ? numbers(rest) : null;
    const view = values && values[2] > 0
      ? {x: values[0], y: values[1], z: values[2]} : null;
    return {key, view};
  });
  const layers = (found.get('on') ?? '').split(',')
    .map((one) => one.split(':'))
    .filter(([name, fade]) => /^[a-z_]+$/.test(name) && fade >= 0 && fade <= 1)
    .map(([name, fade]) => [name, Number(fade)]);
  const box = numbers((found.get('box') ?? 'none').split(','));
  return {
    panes, layers, linked: found.get('link') === '1',
    box: box?.length === 5 ? box : null,
  };
}
