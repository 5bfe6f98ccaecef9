/** From decoded pixels to the vision encoder's input, number for number as `runtime/preprocessing.py` does it. */

const LANCZOS_SUPPORT = 3;
const COEFFICIENT_BITS = 22; // of Pillow's fixed-point weights for 8-bit pixels

/**
 * Returns the pixels of an image file as the camera meant them: turned upright, colours untouched, transparency on white.
 * @param {Blob} blob
 * @returns {Promise<{pixels: Uint8Array, width: number, height: number}>} RGB, row by row.
 */
export async function decodeImage(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: 'none', imageOrientation: 'from-image' });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
  context.fillStyle = 'white';
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const pixels = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) pixels.set(rgba.subarray(4 * i, 4 * i + 3), 3 * i);
  return { pixels, width, height };
}

/**
 * Returns the normalised tile, float32 (3, tile, tile): longest edge first, then to the square, as Idefics3 has it.
 * @param {{pixels: Uint8Array, width: number, height: number}} image
 * @param {object} preprocessing The manifest's table.
 */
export function preprocess(image, { longest_edge, tile_size, mean, std }) {
  const [width, height] = longestEdgeSize(image.width, image.height, longest_edge);
  const { pixels } = resize(resize(image, width, height), tile_size, tile_size);
  const area = tile_size * tile_size;
  const tile = new Float32Array(3 * area);
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) {
      const scaled = Math.fround(pixels[3 * i + c] / 255);
      tile[c * area + i] = Math.fround(scaled - Math.fround(mean[c])) / Math.fround(std[c]);
    }
  }
  return tile;
}

function longestEdgeSize(width, height, longest) {
  const even = (edge) => Math.max(edge + (edge % 2), 1);
  const ratio = width / height;
  return width >= height ? [longest, even(Math.trunc(longest / ratio))] : [even(Math.trunc(longest * ratio)), longest];
}

/** Returns the image in another size as Pillow's Lanczos filter makes it, down to the rounding between the two passes. */
export function resize(image, width, height) {
  const wide = image.width === width ? image : resizeAxis(image, width, true);
  return wide.height === height ? wide : resizeAxis(wide, height, false);
}

function resizeAxis({ pixels, width, height }, size, horizontal) {
  const target = horizontal ? { width: size, height } : { width, height: size };
  const step = horizontal ? 3 : 3 * width; // between neighbours along the axis
  const weights = lanczosWeights(horizontal ? width : height, size);
  const out = new Uint8Array(3 * target.width * target.height);
  for (let y = 0; y < target.height; y++) {
    for (let x = 0; x < target.width; x++) {
      const { first, taps } = weights[horizontal ? x : y];
      const start = 3 * (horizontal ? y * width + first : first * width + x);
      for (let c = 0; c < 3; c++) {
        let sum = 1 << (COEFFICIENT_BITS - 1);
        for (let k = 0; k < taps.length; k++) sum += taps[k] * pixels[start + c + k * step];
        out[3 * (y * target.width + x) + c] = Math.min(255, Math.max(0, sum >> COEFFICIENT_BITS));
      }
    }
  }
  return { pixels: out, ...target };
}

/** Returns for every output position where its window starts and the fixed-point weights in it. */
function lanczosWeights(from, to) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const support = LANCZOS_SUPPORT * stretch;
  return Array.from({ length: to }, (_, position) => {
    const centre = (position + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), from);
    const raw = Array.from({ length: last - first }, (_, k) => lanczos((k + first - centre + 0.5) / stretch));
    const total = raw.reduce((sum, weight) => sum + weight, 0);
    const taps = raw.map((weight) => {
      const fixed = (weight / total) * (1 << COEFFICIENT_BITS);
      return Math.trunc(fixed + (fixed < 0 ? -0.5 : 0.5));
    });
    return { first, taps };
  });
}

function lanczos(x) {
  return Math.abs(x) < LANCZOS_SUPPORT ? sinc(x) * sinc(x / LANCZOS_SUPPORT) : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}
