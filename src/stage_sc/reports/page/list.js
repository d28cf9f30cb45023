// List of the groups of the layer that is shown, legend, and search.
function item(name, count, color, click, current = false) {
  const swatch = make('span', { className: 'swatch' });
  swatch.style.background = color;
  const button = make('button', { className: 'item', title: name }, swatch, make('span', { className: 'name', textContent: name }), make('span', { className: 'count', textContent: count }));
  if (current) button.setAttribute('aria-current', 'true');
  button.addEventListener('click', click);
  return make('li', {}, button);
}

const label = (group) => (nameOf(group) === group.id ? group.id : `${nameOf(group)} (${group.id})`);
const shownName = (layer, group) => (layer.kind === 'level' && group.id !== nameOf(group) ? label(group) : nameOf(group));

function showList() {
  const { layer } = state;
  const rows = layer.groups.map((group, i) => item(shownName(layer, group), number(group.n), group.color, () => choose(layer, i === state.group ? -1 : i), i === state.group));
  byId('list').replaceChildren(...rows);
  const current = byId('list').querySelector('[aria-current]');
  if (current) current.scrollIntoView({ block: 'nearest' });
}

function showLegend() {
  const box = byId('legend');
  if (state.value === null) { box.replaceChildren(); return; }
  const gene = state.value === 'confidence' ? null : facts.genes[state.value];
  const ramp = make('div', { className: 'ramp' });
  ramp.style.background = `linear-gradient(90deg, ${facts.ramp.join(',')})`;
  const back = make('button', { className: 'link', textContent: 'back to niches' });
  back.addEventListener('click', () => showLayer(state.layer));
  box.replaceChildren(make('strong', { textContent: gene ? `${gene.name} ` : 'Confidence ' }), back, ramp,
    make('div', { className: 'ends' }, make('span', { textContent: '0' }), make('span', { textContent: gene ? `≥ ${gene.top.toPrecision(3)} (log)` : '1' })));
}

// Groups of all levels and domains, then genes, of which a text is part; those that begin with it come first.
function find(text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  const found = [];
  const rank = (...names) => Math.min(...names.map((name) => { const at = name.toLowerCase().indexOf(wanted); return at < 0 ? 9 : Math.min(at, 1) + (name.length === wanted.length ? -1 : 0); }));
  for (const layer of facts.layers) {
    layer.groups.forEach((group, i) => {
      const score = rank(nameOf(group), group.id, group.name);
      if (score < 9) found.push({ score, name: `${shownName(layer, group)}, ${layer.title}`, count: number(group.n), color: group.color, go: () => choose(layer, i) });
    });
  }
  facts.genes.forEach((gene, i) => {
    const score = rank(gene.name);
    if (score < 9) found.push({ score, name: gene.name, count: 'gene', color: facts.ramp.at(-3), go: () => showGene(i) });
  });
  return found.sort((a, b) => a.score - b.score).slice(0, 30);
}

function showFound() {
  const text = byId('search').value, found = find(text);
  const rows = found.map((one) => item(one.name, one.count, one.color, () => { clearSearch(); one.go(); }));
  if (text.trim() && !rows.length) rows.push(make('li', { className: 'quiet', textContent: `Nothing has this name. Genes on this page: ${facts.genes.length}.` }));
  byId('found').replaceChildren(...rows);
}

function clearSearch() {
  byId('search').value = '';
  byId('found').replaceChildren();
}
