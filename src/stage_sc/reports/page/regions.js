// Regions that are drawn: {name, slide, points in the coordinates of the slide}.
const regions = [];
let drawing = null; // {slide, points in the plane, freehand} while a region is drawn
const REGION_COLOR = '#c2185b';

function startDrawing(on) {
  drawing = on ? { points: [], freehand: false } : null;
  byId('draw').setAttribute('aria-pressed', String(on));
  markCanvas.classList.toggle('drawing', on);
  draw();
}

function addPoint(px, py, least) {
  const last = drawing.points.at(-1), [x, y] = toPlane(px, py);
  if (last && Math.hypot(last[0] - x, last[1] - y) * view.zoom < least * view.ratio) return;
  drawing.points.push([x, y]);
}

// End of the outline: a region of the slide under its first point, if it has three corners.
function closeRegion() {
  const points = drawing ? drawing.points : [];
  if (points.length >= 3) {
    const slide = slideAt(...points[0]);
    const taken = new Set(regions.map((region) => region.name));
    let count = 1;
    while (taken.has(`region ${count}`)) count += 1;
    regions.push({ name: `region ${count}`, slide: slide.index, points: points.map(([x, y]) => toSlide(slide, x, y)) });
    changed();
  }
  startDrawing(false);
  showDetails();
}

function drawRegions(context) {
  const r = view.ratio;
  const trace = (points, closed) => {
    context.beginPath();
    points.forEach(([x, y], i) => context[i ? 'lineTo' : 'moveTo'](...toPixels(x, y)));
    if (closed) context.closePath();
    context.lineWidth = 4 * r; context.strokeStyle = 'white'; context.stroke();
    context.lineWidth = 2 * r; context.strokeStyle = REGION_COLOR; context.stroke();
  };
  for (const region of regions) {
    const points = region.points.map(([x, y]) => fromSlide(slides[region.slide], x, y));
    trace(points, true);
    writeText(context, region.name, ...toPixels(...points[0]));
  }
  if (drawing && drawing.points.length) trace(drawing.points, false);
}

// Cells inside a region, by group of the layer that is shown.
function countInside(region) {
  const slide = slides[region.slide], layer = state.layer, table = tableOf(layer), counts = new Array(layer.groups.length).fill(0);
  const corners = region.points.map(([x, y]) => [(x - slide.origin[0]) / slide.step, (y - slide.origin[1]) / slide.step]);
  const left = Math.min(...corners.map((p) => p[0])), right = Math.max(...corners.map((p) => p[0]));
  let n = 0;
  for (const chunk of slide.chunks) {
    if (chunk.right < left || chunk.left > right) continue;
    for (let i = chunk.start; i < chunk.stop; i += 1) {
      let inside = false;
      for (let a = 0, b = corners.length - 1; a < corners.length; b = a, a += 1) {
        const [xa, ya] = corners[a], [xb, yb] = corners[b];
        if ((ya > ys[i]) !== (yb > ys[i]) && xs[i] < ((xb - xa) * (ys[i] - ya)) / (yb - ya) + xa) inside = !inside;
      }
      if (!inside) continue;
      n += 1;
      const group = groupOf(table, state.layerCodes[i]);
      if (group >= 0) counts[group] += 1;
    }
  }
  return { n, counts };
}

function regionRows() {
  return regions.map((region, i) => {
    const { n, counts } = countInside(region);
    const top = counts.map((count, group) => [count, group]).filter(([count]) => count).sort((a, b) => b[0] - a[0]).slice(0, 4);
    const name = make('input', { value: region.name, 'aria-label': 'Name of region' });
    name.addEventListener('change', () => { region.name = name.value.trim() || region.name; changed(); draw(); });
    const go = make('button', { className: 'link', textContent: 'show' });
    go.addEventListener('click', () => { fit([slides[region.slide]]); draw(); });
    const remove = make('button', { className: 'link', textContent: 'delete' });
    remove.addEventListener('click', () => { regions.splice(i, 1); changed(); showDetails(); draw(); });
    const facts = top.map(([count, group]) => `${nameOf(state.layer.groups[group])} ${percent(count / n)}`).join(', ');
    const place = slides.length > 1 ? `${slides[region.slide].name}: ` : '';
    return make('div', {}, make('div', { className: 'region' }, name, go, remove), make('div', { className: 'quiet', textContent: `${place}${number(n)} cells. ${facts}` }));
  });
}
