// Slides side by side in one plane, in rows, true to scale where their scales are known and alike.
const slides = facts.slides;

function placeSlides() {
  const known = slides.every((slide) => slide.scale !== null && !slide.guessed);
  const size = slides.map((slide) => Math.max(...slide.size) * (known ? slide.scale : 1) || 1);
  const alike = known && Math.max(...size) <= 4 * Math.min(...size);
  slides.forEach((slide, i) => {
    slide.factor = alike || slides.length === 1 ? slide.scale || 1 : 1000 / (Math.max(...slide.size) || 1);
    slide.world = slide.step * slide.factor; // units of the plane for one step
    slide.width = slide.size[0] * slide.factor;
    slide.height = slide.size[1] * slide.factor;
    slide.index = i;
  });
  const gap = 0.08 * Math.max(...slides.map((slide) => Math.max(slide.width, slide.height)));
  const area = slides.reduce((sum, slide) => sum + (slide.width + gap) * (slide.height + gap), 0);
  const longest = Math.max(1.5 * Math.sqrt(area), ...slides.map((slide) => slide.width));
  let x = 0, y = 0, row = 0;
  for (const slide of slides) {
    if (x > 0 && x + slide.width > longest) { x = 0; y += row + gap; row = 0; }
    slide.x = x;
    slide.y = y;
    x += slide.width + gap;
    row = Math.max(row, slide.height);
  }
}

// Chunks of cells that lie together, with their bounds; and the usual distance of cells.
const CHUNK = 2048;
function makeChunks(xs, ys) {
  for (const slide of slides) {
    slide.chunks = [];
    const steps = [];
    for (let start = slide.start; start < slide.start + slide.n; start += CHUNK) {
      const stop = Math.min(start + CHUNK, slide.start + slide.n);
      let left = 65535, right = 0, top = 65535, bottom = 0;
      for (let i = start; i < stop; i += 1) {
        if (xs[i] < left) left = xs[i];
        if (xs[i] > right) right = xs[i];
        if (ys[i] < top) top = ys[i];
        if (ys[i] > bottom) bottom = ys[i];
      }
      slide.chunks.push({ start, stop, left, right, top, bottom });
    }
    const stride = Math.max(1, Math.floor(slide.n / 2000));
    for (let i = slide.start + 1; i < slide.start + slide.n; i += stride) steps.push(Math.hypot(xs[i] - xs[i - 1], ys[i] - ys[i - 1]));
    steps.sort((a, b) => a - b);
    slide.spacing = (steps[steps.length >> 1] || 65535) * slide.world;
  }
}

const bounds = (list) => ({
  left: Math.min(...list.map((slide) => slide.x)), right: Math.max(...list.map((slide) => slide.x + slide.width)),
  top: Math.min(...list.map((slide) => slide.y)), bottom: Math.max(...list.map((slide) => slide.y + slide.height)),
});

// Slide around or nearest to a point of the plane.
function slideAt(x, y) {
  const away = (slide) => Math.hypot(Math.max(slide.x - x, 0, x - slide.x - slide.width), Math.max(slide.y - y, 0, y - slide.y - slide.height));
  return slides.reduce((best, slide) => (away(slide) < away(best) ? slide : best));
}
const toSlide = (slide, x, y) => [slide.origin[0] + (x - slide.x) / slide.factor, slide.origin[1] + (y - slide.y) / slide.factor];
const fromSlide = (slide, x, y) => [slide.x + (x - slide.origin[0]) * slide.factor, slide.y + (y - slide.origin[1]) * slide.factor];
