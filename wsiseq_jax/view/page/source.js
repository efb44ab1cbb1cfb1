// A slide as a tile source of OpenSeadragon: the levels of the file as they
// are, whatever the steps between them and the sides of their tiles.

export function tileSource(slide) {
  const levels = [...slide.levels].reverse(); // OpenSeadragon's 0 is coarsest
  const [width, height] = slide.size;
  const source = new OpenSeadragon.TileSource({
    width, height, tileSize: 256, minLevel: 0, maxLevel: levels.length - 1,
  });
  const grid = (n) => new OpenSeadragon.Point(...levels[n].grid);
  source.getLevelScale = (n) => 1 / levels[n].downsample;
  source.getTileWidth = (n) => levels[n].tile[0];
  source.getTileHeight = (n) => levels[n].tile[1];
  source.getNumTiles = grid;
  source.getTileAtPoint = (n, point) => {
    const at = levels[n];
    const index = (v, side, i) => Math.min(
      Math.max(0, Math.floor(v * width / at.downsample / side)),
      at.grid[i] - 1);
    return new OpenSeadragon.Point(
      index(point.x, at.tile[0], 0), index(point.y, at.tile[1], 1));
  };
  source.getTileBounds = (n, x, y, isSource) => {
    const at = levels[n];
    const w = Math.min(at.tile[0], at.size[0] - x * at.tile[0]);
    const h = Math.min(at.tile[1], at.size[1] - y * at.tile[1]);
    // A stored tile may hang over the edge: only this much of it is slide.
    if (isSource) return new OpenSeadragon.Rect(0, 0, w, h);
    const unit = at.downsample / width;
    return new OpenSeadragon.Rect(
      x * at.tile[0] * unit, y * at.tile[1] * unit, w * unit, h * unit);
  };
  source.getTileUrl = (n, x, y) =>
    `/api/slides/${slide.key}/tiles/${levels.length - 1 - n}/${x}/${y}` +
    `?v=${slide.version}`;
  return source;
}
