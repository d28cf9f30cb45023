// Facts and packed arrays of the page; elements whose text is never read as HTML.
const facts = JSON.parse(document.getElementById('facts').textContent);
const byId = (id) => document.getElementById(id);

// Element with properties and children; text becomes text nodes.
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(properties)) if (name.startsWith('aria-')) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const number = (value) => value.toLocaleString('en-US');
const percent = (part) => `${part >= 0.0995 || part === 0 ? Math.round(100 * part) : (100 * part).toFixed(1)} %`;

// Bytes of a packed array: base64, then gzip.
async function unpackBytes(name) {
  const text = atob(byId(`array-${name}`).textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Integers of one byte, or of two that are stored as low bytes, then high bytes.
async function unpack(name, delta = false) {
  const bytes = await unpackBytes(name);
  if (bytes.length !== 2 * facts.n || (facts.n === 0)) return bytes;
  const values = new Uint16Array(facts.n);
  let last = 0;
  for (let i = 0; i < facts.n; i += 1) {
    const value = bytes[i] | (bytes[facts.n + i] << 8);
    last = delta ? (last + value) & 65535 : value;
    values[i] = last;
  }
  return values;
}

const arrays = {};
// Array by name, unpacked when it is first asked for.
function array(name) {
  if (!arrays[name]) arrays[name] = unpack(name, name === 'x' || name === 'y');
  return arrays[name];
}

// Names that were given on this page, by the id of a group; empty text is no name.
const given = {};
const nameOf = (group) => given[group.id] || group.name;
const levels = facts.layers.filter((layer) => layer.kind === 'level');
