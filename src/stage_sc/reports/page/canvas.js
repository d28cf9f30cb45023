// Cells drawn pixel by pixel into the image of a canvas; no graphics card is needed.
const cellCanvas = byId('cells'), markCanvas = byId('marks');
const cellContext = cellCanvas.getContext('2d', { alpha: false }), markContext = markCanvas.getContext('2d');
const view = { x: 0, y: 0, zoom: 1, ratio: 1 }; // centre in the plane, pixels for a unit, pixels for a CSS pixel
let image = null, pixels = null, xs = null, ys = null;
let codes = null, passes = []; // code of each cell, and a table of colours for each pass, 0 for cells left out

function resize() {
  const box = byId('view').getBoundingClientRect();
  view.ratio = Math.min(window.devicePixelRatio || 1, 2);
  const width = Math.max(1, Math.round(box.width * view.ratio)), height = Math.max(1, Math.round(box.height * view.ratio));
  if (image && image.width === width && image.height === height) return;
  for (const canvas of [cellCanvas, markCanvas]) { canvas.width = width; canvas.height = height; }
  image = cellContext.createImageData(width, height);
  pixels = new Uint32Array(image.data.buffer);
}

function fit(list = slides) {
  const box = bounds(list), margin = 0.06;
  view.x = (box.left + box.right) / 2;
  view.y = (box.top + box.bottom) / 2;
  const width = (box.right - box.left) * (1 + margin) || 1, height = (box.bottom - box.top) * (1 + 2 * margin) || 1;
  view.zoom = Math.min(image.width / width, (image.height - 60 * view.ratio) / height);
}

const toPixels = (x, y) => [(x - view.x) * view.zoom + image.width / 2, (y - view.y) * view.zoom + image.height / 2];
const toPlane = (px, py) => [(px - image.width / 2) / view.zoom + view.x, (py - image.height / 2) / view.zoom + view.y];

function zoomAt(px, py, factor) {
  const [x, y] = toPlane(px, py);
  const least = 0.2 * Math.min(image.width, image.height) / Math.max(bounds(slides).right - bounds(slides).left, bounds(slides).bottom - bounds(slides).top, 1e-9);
  view.zoom = Math.min(Math.max(view.zoom * factor, least), 60 / Math.min(...slides.map((slide) => slide.spacing)));
  const [newX, newY] = toPlane(px, py);
  view.x += x - newX;
  view.y += y - newY;
}

// Half widths of the rows of a disc.
function disc(radius) {
  const rows = [];
  for (let dy = -Math.floor(radius); dy <= radius; dy += 1) rows.push(Math.floor(Math.sqrt(radius * radius - dy * dy)));
  return rows;
}

// Visible chunks of cells of a slide, with some pixels around.
function* visible(slide, around) {
  const f = slide.world * view.zoom, [left, top] = toPixels(slide.x, slide.y);
  for (const chunk of slide.chunks) {
    if (left + chunk.right * f < -around || left + chunk.left * f > image.width + around) continue;
    if (top + chunk.bottom * f < -around || top + chunk.top * f > image.height + around) continue;
    yield { chunk, f, left, top };
  }
}

function drawPass(table) {
  const width = image.width, height = image.height;
  for (const slide of slides) {
    const spacing = slide.spacing * view.zoom, radius = Math.min((spacing < 8 ? 0.55 : 0.45) * spacing, 30);
    const rows = radius >= 1.5 ? disc(radius) : null, reach = rows ? Math.floor(radius) : 0, square = radius >= 0.7 ? 2 : 1;
    for (const { chunk, f, left, top } of visible(slide, reach + 2)) {
      for (let i = chunk.start; i < chunk.stop; i += 1) {
        const color = table[codes[i]];
        if (color === 0) continue;
        const px = (left + xs[i] * f) | 0, py = (top + ys[i] * f) | 0;
        if (rows === null) {
          if (px < 0 || py < 0 || px >= width - 1 || py >= height - 1) continue;
          const at = py * width + px;
          pixels[at] = color;
          if (square === 2) { pixels[at + 1] = color; pixels[at + width] = color; pixels[at + width + 1] = color; }
          continue;
        }
        if (px < -reach || px >= width + reach || py < -reach || py >= height + reach) continue;
        for (let k = 0; k < rows.length; k += 1) {
          const y = py + k - reach;
          if (y < 0 || y >= height) continue;
          const start = Math.max(px - rows[k], 0), stop = Math.min(px + rows[k] + 1, width);
          if (start < stop) pixels.fill(color, y * width + start, y * width + stop);
        }
      }
    }
  }
}

// Draw all at once; returns the milliseconds it took.
function drawNow() {
  if (!codes) return 0;
  const before = performance.now();
  pixels.fill(0xffffffff);
  passes.forEach(drawPass);
  cellContext.putImageData(image, 0, 0);
  drawMarks();
  return performance.now() - before;
}

let asked = false;
function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; drawNow(); });
}

// Cell nearest to a pixel, -1 without one nearby.
function pick(px, py) {
  let best = -1, least = Infinity;
  for (const slide of slides) {
    const reach = Math.max(6 * view.ratio, 0.8 * slide.spacing * view.zoom);
    for (const { chunk, f, left, top } of visible(slide, reach)) {
      if (left + chunk.right * f < px - reach || left + chunk.left * f > px + reach) continue;
      if (top + chunk.bottom * f < py - reach || top + chunk.top * f > py + reach) continue;
      for (let i = chunk.start; i < chunk.stop; i += 1) {
        const dx = left + xs[i] * f - px, dy = top + ys[i] * f - py, away = dx * dx + dy * dy;
        if (away < least && away <= reach * reach) { least = away; best = i; }
      }
    }
  }
  return best;
}

// Names of slides, scale bar and regions, above the cells.
function drawMarks() {
  const context = markContext, r = view.ratio;
  context.clearRect(0, 0, image.width, image.height);
  context.font = `${12 * r}px system-ui, "DejaVu Sans", sans-serif`;
  context.textBaseline = 'bottom';
  for (const slide of slides) {
    const [left, top] = toPixels(slide.x, slide.y), room = slide.width * view.zoom;
    if (!slide.name || slides.length < 2 || room < 30 * r || top < -20 || top > image.height + 20) continue;
    let name = slide.name;
    while (name.length > 2 && context.measureText(name).width > room + 10) name = `${name.slice(0, -2)}…`;
    writeText(context, name, left, top - 3 * r);
  }
  drawRegions(context);
  drawScale(context);
}

function writeText(context, text, x, y) {
  context.lineWidth = 3 * view.ratio;
  context.strokeStyle = 'white';
  context.fillStyle = '#222';
  context.strokeText(text, x, y);
  context.fillText(text, x, y);
}

// Bar of a round length in µm for the slide in the centre of the view.
function drawScale(context) {
  const slide = slideAt(view.x, view.y);
  if (slide.scale === null) return;
  const perMicron = view.zoom * slide.factor / slide.scale, longest = 0.2 * image.width / perMicron;
  const power = 10 ** Math.floor(Math.log10(longest));
  const length = [5, 2, 1].find((step) => step * power <= longest) * power;
  const r = view.ratio, x = 12 * r, y = image.height - 14 * r;
  context.fillStyle = '#222';
  context.fillRect(x, y, length * perMicron, 3 * r);
  writeText(context, `${slide.guessed ? '≈ ' : ''}${length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(3))} µm`}`, x, y - 3 * r);
}
