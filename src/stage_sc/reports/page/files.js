// Names and regions as files, and back.
let unsaved = { names: false, regions: false };

function changed() {
  unsaved = { names: Object.keys(given).length > 0, regions: true };
  byId('unsaved').textContent = 'not saved';
}

function saveFile(name, content) {
  const link = make('a', { href: URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: 'application/json' })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const head = () => ({ format: 'stage_sc report', version: 1, key_added: facts.key_added, names: { ...given } });
const fileName = (ending) => `${facts.title.replace(/[^\w.-]+/g, '_').slice(0, 60) || 'report'}.${ending}`;

function saved(what) {
  unsaved[what] = false;
  if (what === 'regions') unsaved.names = false;
  if (!unsaved.names && (what === 'regions' || !regions.length)) byId('unsaved').textContent = '';
}

function saveNames() {
  saveFile(fileName('names.json'), head());
  saved('names');
}

function saveRegions() {
  const features = regions.map((region) => ({
    type: 'Feature',
    geometry: { type: 'Polygon', coordinates: [[...region.points, region.points[0]]] },
    properties: { objectType: 'annotation', name: region.name, slide: slides[region.slide].name, classification: { name: region.name, color: [194, 24, 91] } },
  }));
  saveFile(fileName('regions.geojson'), { type: 'FeatureCollection', stage_sc: head(), features });
  saved('regions');
}

// Read a file that this page, or another program, has saved; text of names is kept, all else is checked.
function readSaved(text) {
  const content = JSON.parse(text), names = (content.stage_sc || content).names || {};
  const known = new Set(facts.layers.filter((layer) => layer.kind !== 'column').flatMap((layer) => layer.groups.map((group) => group.id)));
  let count = 0;
  for (const [id, name] of Object.entries(names)) if (known.has(id) && typeof name === 'string' && name.trim()) { given[id] = name.trim().slice(0, 200); count += 1; }
  for (const feature of content.features || []) {
    const geometry = feature.geometry || {}, properties = feature.properties || {};
    const rings = geometry.type === 'Polygon' ? [geometry.coordinates[0]] : geometry.type === 'MultiPolygon' ? geometry.coordinates.map((one) => one[0]) : [];
    const slide = slides.length === 1 ? 0 : slides.findIndex((one) => one.name === properties.slide);
    for (const ring of rings) {
      const points = ring.map((point) => point.slice(0, 2).map(Number)), closed = points.length > 3 && points[0].join() === points.at(-1).join();
      if (slide < 0 || points.length < 3 || points.flat().some((value) => !Number.isFinite(value))) continue;
      regions.push({ name: String(properties.name || (properties.classification || {}).name || 'region').slice(0, 200), slide, points: closed ? points.slice(0, -1) : points });
      count += 1;
    }
  }
  return count;
}

async function openFile(file) {
  let text;
  try {
    text = `${readSaved(await file.text())} names and regions read`;
  } catch (error) {
    text = `not a file of names or regions (${error.message})`;
  }
  byId('unsaved').textContent = text;
  showList();
  showDetails();
  draw();
}
