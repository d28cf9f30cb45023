// State of the page, and what the user does.
const state = { layer: levels[0], layerCodes: null, group: -1, value: null };
let loads = 0; // a slow array must not replace a choice made after it was asked for

const rgba = (hex) => (0xff000000 | (parseInt(hex.slice(5, 7), 16) << 16) | (parseInt(hex.slice(3, 5), 16) << 8) | parseInt(hex.slice(1, 3), 16)) >>> 0;
const mixed = (hex, part) => { // with white
  const mix = (at) => Math.round(255 - (255 - parseInt(hex.slice(at, at + 2), 16)) * part);
  return (0xff000000 | (mix(5) << 16) | (mix(3) << 8) | mix(1)) >>> 0;
};

// Group of each stored code of a layer; the codes may be those of the deepest level.
function tableOf(layer) {
  if (!layer.table) {
    const groups = layer.map ? layer.map.slice(0, -1) : layer.groups.map((group, i) => i);
    layer.table = { groups, none: layer.map ? layer.map.at(-1) : -1 };
  }
  return layer.table;
}
const groupOf = (table, code) => (code < table.groups.length ? table.groups[code] : table.none);

// Tables of colours of the passes: others pale below the chosen group.
function layerPasses(layer, chosen) {
  const size = state.layerCodes.BYTES_PER_ELEMENT === 1 ? 256 : 65536, table = tableOf(layer);
  const below = new Uint32Array(size), above = new Uint32Array(size);
  for (let code = 0; code < size; code += 1) {
    const group = groupOf(table, code), color = group < 0 ? facts.missing : layer.groups[group].color;
    if (chosen < 0) below[code] = rgba(color);
    else if (group === chosen) above[code] = rgba(color);
    else below[code] = mixed(color, 0.26);
  }
  return chosen < 0 ? [below] : [below, above];
}

function valuePasses(gene) {
  const below = new Uint32Array(256), above = new Uint32Array(256);
  below[255] = rgba('#f4f4f4');
  if (gene) {
    below[0] = rgba('#e4e4e4');
    facts.ramp.forEach((color, i) => { above[i + 1] = rgba(color); });
  } else for (let code = 0; code < 255; code += 1) below[code] = rgba(facts.ramp[Math.min(Math.floor((code / 255) * facts.ramp.length), facts.ramp.length - 1)]);
  return gene ? [below, above] : [below];
}

function paint() {
  if (state.value === null) { codes = state.layerCodes; passes = layerPasses(state.layer, state.group); }
  draw();
}

async function showLayer(layer, group = -1) {
  const load = loads += 1, loaded = await array(`layer${layer.base}`);
  if (load !== loads) return;
  Object.assign(state, { layer, layerCodes: loaded, group, value: null });
  showControls();
}

async function showValue(value) {
  const gene = value !== 'confidence', load = loads += 1;
  const loaded = await array(gene ? `gene${value}` : 'confidence');
  if (load !== loads) return;
  state.value = value;
  codes = loaded;
  passes = valuePasses(gene);
  showControls();
}
const showGene = (i) => showValue(i);
const choose = (layer, group) => showLayer(layer, group);

function showControls() {
  const level = levels.indexOf(state.layer);
  byId('mode').value = state.value === 'confidence' ? 'confidence' : state.value !== null ? `gene${state.value}` : level >= 0 ? 'niches' : `layer${facts.layers.indexOf(state.layer)}`;
  byId('level-row').hidden = level < 0 || levels.length < 2;
  if (level >= 0) byId('level').value = level + 1;
  byId('level-name').textContent = level >= 0 ? `${level + 1} of ${levels.length}: ${state.layer.groups.length}` : '';
  showList();
  showLegend();
  showDetails();
  paint();
}

// Another level: the chosen niche becomes its parent, or stays out of sight where it is divided.
function setLevel(level) {
  let group = state.group;
  const from = levels.indexOf(state.layer);
  if (from < 0 || level > from) group = -1;
  for (let at = from; at > level && group >= 0; at -= 1) group = levels[at].groups[group].parent;
  return showLayer(levels[level], group);
}

function goTo(i) {
  fit(i < 0 ? slides : [slides[i]]);
  byId('slide').value = String(i);
  draw();
}

function setMode(mode) {
  if (mode === 'confidence') return showValue(mode);
  if (mode.startsWith('gene')) return showGene(Number(mode.slice(4)));
  return showLayer(mode === 'niches' ? levels.includes(state.layer) ? state.layer : levels[0] : facts.layers[Number(mode.slice(5))]);
}

function fillControls() {
  const mode = byId('mode'), option = (value, textContent) => make('option', { value, textContent });
  mode.append(option('niches', facts.key_added ? 'niches' : levels[0].title));
  facts.layers.forEach((layer, i) => { if (layer.kind !== 'level') mode.append(option(`layer${i}`, layer.title)); });
  if (facts.confidence) mode.append(option('confidence', 'confidence'));
  if (facts.genes.length) mode.append(make('optgroup', { label: 'genes' }, ...facts.genes.map((gene, i) => option(`gene${i}`, gene.name))));
  byId('level').max = levels.length;
  byId('slide').append(option('-1', `all slides (${slides.length})`), ...slides.map((slide, i) => option(String(i), slide.name || 'slide')));
  byId('slide').hidden = slides.length < 2;
  byId('title').textContent = facts.title;
  byId('summary').textContent = `${number(facts.n)} cells, ${slides.length} slide${slides.length > 1 ? 's' : ''}`;
}

function listen() {
  const on = (id, event, action) => byId(id).addEventListener(event, action);
  on('mode', 'change', () => setMode(byId('mode').value));
  on('level', 'input', () => setLevel(Number(byId('level').value) - 1));
  on('search', 'input', showFound);
  on('search', 'keydown', (event) => {
    const [first] = find(byId('search').value);
    if (event.key === 'Enter' && first) { clearSearch(); first.go(); }
    if (event.key === 'Escape') clearSearch();
  });
  on('slide', 'change', () => goTo(Number(byId('slide').value)));
  on('fit', 'click', () => goTo(-1));
  for (const [id, factor] of [['zoom-in', 1.5], ['zoom-out', 1 / 1.5]]) on(id, 'click', () => { zoomAt(image.width / 2, image.height / 2, factor); draw(); });
  on('draw', 'click', () => startDrawing(!drawing));
  on('save-names', 'click', saveNames);
  on('save-regions', 'click', saveRegions);
  on('open', 'click', () => byId('file').click());
  on('file', 'change', () => { if (byId('file').files[0]) openFile(byId('file').files[0]); byId('file').value = ''; });
  on('about', 'click', () => showText(byId('text').hidden));
  window.addEventListener('beforeunload', (event) => { if (unsaved.names || (unsaved.regions && regions.length)) event.preventDefault(); });
  new ResizeObserver(() => { resize(); draw(); }).observe(byId('view'));
  listenToPointers();
}

// Drag moves, two fingers zoom, a click chooses; while a region is drawn, drag and clicks outline it.
function listenToPointers() {
  const fingers = new Map();
  let moved = 0, apart = 0;
  const place = (event) => [event.offsetX * view.ratio, event.offsetY * view.ratio];
  const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
  markCanvas.addEventListener('wheel', (event) => {
    event.preventDefault();
    zoomAt(...place(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)));
    draw();
  }, { passive: false });
  markCanvas.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    markCanvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
    moved = 0;
    apart = fingers.size === 2 ? spread() : 0;
    byId('tip').hidden = true;
    if (drawing) addPoint(...place(event), 2);
  });
  markCanvas.addEventListener('pointermove', (event) => {
    const last = fingers.get(event.pointerId), now = place(event);
    if (!last) { if (!drawing) hover(event, now); return; }
    moved += Math.hypot(now[0] - last[0], now[1] - last[1]);
    fingers.set(event.pointerId, now);
    if (drawing) addPoint(...now, 3);
    else if (fingers.size === 2) { zoomAt(...now, spread() / (apart || spread())); apart = spread(); }
    else { view.x -= (now[0] - last[0]) / view.zoom; view.y -= (now[1] - last[1]) / view.zoom; }
    draw();
  });
  const release = (event) => {
    if (!fingers.delete(event.pointerId) || event.type === 'pointercancel') return;
    if (drawing) { if (moved > 20 * view.ratio) closeRegion(); draw(); return; }
    if (moved < 5 * view.ratio) click(...place(event));
  };
  markCanvas.addEventListener('pointerup', release);
  markCanvas.addEventListener('pointercancel', release);
  markCanvas.addEventListener('pointerleave', () => { byId('tip').hidden = true; });
  markCanvas.addEventListener('dblclick', () => { if (drawing) closeRegion(); });
  window.addEventListener('keydown', (event) => {
    if (['INPUT', 'SELECT', 'TEXTAREA'].includes(event.target.tagName)) return;
    if (event.key === 'Enter' && drawing) { event.preventDefault(); closeRegion(); }
    if (event.key === 'Escape') { if (drawing) startDrawing(false); else if (!byId('text').hidden) showText(false); else choose(state.layer, -1); }
    if (event.key === '+' || event.key === '-') { zoomAt(image.width / 2, image.height / 2, event.key === '+' ? 1.5 : 1 / 1.5); draw(); }
    if (event.key === '0') goTo(-1);
  });
}

function click(px, py) {
  const cell = pick(px, py);
  choose(state.layer, cell < 0 ? -1 : groupOf(tableOf(state.layer), state.layerCodes[cell]));
}

function hover(event, now) {
  const cell = pick(...now), tip = byId('tip');
  tip.hidden = cell < 0;
  if (cell < 0) return;
  const group = groupOf(tableOf(state.layer), state.layerCodes[cell]);
  const slide = slides.find((one) => cell < one.start + one.n);
  tip.textContent = [group < 0 ? 'no label' : shownName(state.layer, state.layer.groups[group]), slides.length > 1 ? slide.name : ''].filter(Boolean).join(', ');
  tip.style.left = `${event.offsetX + 12}px`;
  tip.style.top = `${event.offsetY + 12}px`;
}

async function start() {
  if (typeof DecompressionStream === 'undefined') throw new Error('this browser is too old (Chrome 80, Firefox 113, Safari 16.4 or later)');
  [xs, ys] = await Promise.all([array('x'), array('y')]);
  placeSlides();
  makeChunks(xs, ys);
  fillControls();
  resize();
  fit();
  listen();
  await showLayer(levels[0]);
  drawNow();
  byId('busy').hidden = true;
  document.body.dataset.ready = 'yes';
}

start().catch((error) => { byId('busy').textContent = `This page cannot be shown: ${error.message}`; });
