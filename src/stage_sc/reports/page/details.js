// Details of the chosen niche, or an overview.
const heading = (text) => make('h2', { textContent: text });

function bar(name, part, value, click = null, color = null) {
  const fill = make('span', { className: 'fill' });
  fill.style.width = `${Math.min(100 * part, 100)}%`;
  if (color) fill.style.background = color;
  const row = make(click ? 'button' : 'div', { className: 'bar', title: name },
    make('span', { className: 'name', textContent: name }), make('span', { className: 'track' }, fill), make('span', { className: 'value', textContent: value }));
  if (click) row.addEventListener('click', click);
  return row;
}

// Rows of which the first are shown, and the others on demand.
function longList(rows, most = 8) {
  const box = make('div', {}, ...rows.slice(0, most));
  if (rows.length > most) {
    const more = make('button', { className: 'link', textContent: `all ${rows.length}` });
    more.addEventListener('click', () => more.replaceWith(...rows.slice(most)));
    box.append(more);
  }
  return box;
}

// Bars of the groups of a niche's cells, as a share of `totals` or of the niche.
function shareBars(pairs, names, totals, click = null) {
  const rows = pairs.map(([i, n]) => [i, n / totals[i], n]).sort((a, b) => b[1] - a[1]);
  const most = Math.max(...rows.map((row) => row[1]), 1e-9);
  return longList(rows.map(([i, part, n]) => {
    const row = bar(names[i] || 'all', part / most, percent(part), click && (() => click(i)));
    row.title = `${names[i]}: ${number(n)} cells`;
    return row;
  }));
}

function totalsOf(layer, key, n) {
  const totals = new Array(n).fill(0);
  for (const group of layer.groups) for (const [i, count] of group[key] || []) totals[i] += count;
  return totals;
}

function geneLink(name) {
  const i = facts.genes.findIndex((gene) => gene.name === name);
  if (i < 0) return make('span', { textContent: name });
  const link = make('button', { className: 'link', textContent: name, title: 'Show on the tissue' });
  link.addEventListener('click', () => showGene(i));
  return link;
}

function markerTable(rows) {
  const head = make('tr', {}, ...['gene', 'difference', 'in niche', 'elsewhere'].map((textContent) => make('th', { textContent })));
  const lines = rows.map(([name, difference, inside, outside]) => make('tr', {}, make('td', {}, geneLink(name)),
    ...[difference.toFixed(2), percent(inside), percent(outside)].map((textContent) => make('td', { textContent }))));
  return make('table', {}, head, ...lines);
}

const scoreTable = (rows, link) => make('table', {}, ...rows.map(([name, score]) => make('tr', {}, make('td', {}, link ? geneLink(name) : document.createTextNode(name)), make('td', { textContent: score.toPrecision(3) }))));

function histogram(confidence) {
  const most = Math.max(...confidence.bins, 1);
  return make('div', { className: 'bins', title: 'Cells by confidence, 0 to 1' }, ...confidence.bins.map((n, i) => {
    const column = make('span', { title: `${i / 10} to ${(i + 1) / 10}: ${number(n)} cells` });
    column.style.height = `${(100 * n) / most}%`;
    return column;
  }));
}

function groupLink(layer, i) {
  const link = make('button', { className: 'link', textContent: nameOf(layer.groups[i]) });
  link.addEventListener('click', () => choose(layer, i));
  return link;
}

function family(layer, i) {
  const at = levels.indexOf(layer), path = [], below = [];
  for (let level = at, group = i; level > 0;) {
    group = levels[level].groups[group].parent;
    level -= 1;
    if (group < 0) break;
    path.unshift(groupLink(levels[level], group), document.createTextNode(' › '));
  }
  if (at >= 0 && at + 1 < levels.length) {
    levels[at + 1].groups.forEach((group, k) => { if (group.parent === i) below.push(groupLink(levels[at + 1], k), document.createTextNode(' ')); });
  }
  return [path.length ? make('div', {}, ...path) : null, below.length ? make('div', {}, make('span', { className: 'quiet', textContent: 'Parts: ' }), ...below) : null];
}

function renameField(layer, group) {
  if (layer.kind === 'column') return make('div', { className: 'rename', textContent: group.name });
  const field = make('input', { className: 'rename', value: nameOf(group), id: 'rename', maxLength: 200, 'aria-label': 'Name of niche' });
  field.addEventListener('change', () => {
    const name = field.value.trim();
    if (name && name !== group.name) given[group.id] = name; else delete given[group.id];
    field.value = nameOf(group);
    changed();
    showList();
  });
  return field;
}

function niche(layer, i) {
  const group = layer.groups[i], parts = [renameField(layer, group)];
  const all = layer.groups.reduce((sum, one) => sum + one.n, 0);
  parts.push(make('div', { className: 'quiet', textContent: `${layer.title}, id ${group.id}: ${number(group.n)} cells, ${percent(group.n / all)}` }), ...family(layer, i));
  const add = (title, element) => parts.push(heading(title), element);
  if (slides.length > 1) add('Share of each slide', shareBars(group.slides, slides.map((slide) => slide.name), slides.map((slide) => slide.n), goTo));
  if (group.conditions) add(`Share of each ${facts.condition_key}`, shareBars(group.conditions, facts.conditions, totalsOf(layer, 'conditions', facts.conditions.length)));
  if (group.types) add(`Cells by ${facts.type_key}`, shareBars(group.types, facts.types, new Array(facts.types.length).fill(group.n)));
  if (group.ranked && group.ranked.length) add('Markers (rank_niche_genes)', scoreTable(group.ranked, true));
  if (group.markers && group.markers.length) add('Marker genes (mean log expression)', markerTable(group.markers));
  else if (group.markers) add('Marker genes', make('div', { className: 'quiet', textContent: 'None: too few cells, or no gene is higher here.' }));
  if (group.pathways && group.pathways.length) add('Pathways', scoreTable(group.pathways, false));
  if (group.neighbors && group.neighbors.length) {
    const most = group.neighbors[0][1];
    const rows = group.neighbors.map(([k, part, ratio]) => {
      const row = bar(nameOf(layer.groups[k]), part / most, `${percent(part)} ×${ratio.toPrecision(2)}`, () => choose(layer, k), layer.groups[k].color);
      row.title = `${percent(part)} of the edges that leave, ${ratio} times as many as by size`;
      return row;
    });
    add('Neighbours (share of outer edges, × by size)', make('div', {}, ...rows));
  }
  if (group.confidence) add(`Confidence, mean ${group.confidence.mean.toFixed(2)}`, histogram(group.confidence));
  return parts;
}

function overview() {
  const parts = [make('p', { className: 'quiet', textContent: 'Click cells or a name on the left. Wheel: zoom. Drag: move.' })];
  if (slides.length > 1) {
    const most = Math.max(...slides.map((slide) => slide.n));
    parts.push(heading('Slides'), longList(slides.map((slide, i) => bar(slide.name, slide.n / most, number(slide.n), () => goTo(i))), 20));
  }
  if (facts.warnings.length) {
    const link = make('button', { className: 'link', textContent: `${facts.warnings.length} warning${facts.warnings.length > 1 ? 's' : ''}` });
    link.addEventListener('click', () => showText(true));
    parts.push(make('p', {}, link));
  }
  return parts;
}

function showDetails() {
  const parts = state.group >= 0 ? niche(state.layer, state.group) : overview();
  if (regions.length) parts.push(heading('Regions'), ...regionRows());
  byId('details').replaceChildren(...parts.filter((part) => part !== null));
}

function showText(on) {
  const box = byId('text');
  box.hidden = !on;
  byId('about').setAttribute('aria-expanded', String(on));
  if (!on) return;
  const close = make('button', { textContent: 'Close' });
  close.addEventListener('click', () => showText(false));
  const said = facts.warnings.length ? facts.warnings.map((textContent) => make('p', { textContent })) : [make('p', { textContent: 'Nothing was warned about.' })];
  const page = 'Cells are drawn on a canvas without a graphics card. Coordinates are rounded to 1/65,535 of a slide, expression to 15 grades. Marker genes (unless taken from rank_niche_genes) have the largest difference of mean log-normalised expression to all other cells. Neighbours are counted by edges of the neighbourhood graph.';
  box.replaceChildren(close, make('h3', { textContent: 'Methods' }), make('p', { textContent: facts.methods, id: 'methods' }), make('p', { textContent: page }), make('h3', { textContent: 'Warnings' }), ...said);
}
