// A heat map over a picture: patches in [0, 1], smoothed and coloured.

/** Stops of the ramp: [heat, red, green, blue, opacity]. Little heat lets the picture through. */
const RAMP = [
  [0, 46, 16, 101, 0.0],
  [0.25, 76, 29, 149, 0.25],
  [0.5, 190, 36, 120, 0.6],
  [0.75, 249, 115, 22, 0.8],
  [1, 253, 224, 71, 0.95],
];

/** Colour of a heat in [0, 1]: [red, green, blue, opacity], each in [0, 255]. */
export function colour(heat) {
  const high = Math.max(1, RAMP.findIndex(([stop]) => heat <= stop));
  const [[low, ...from], [top, ...to]] = [RAMP[high - 1], RAMP[high]];
  const share = Math.min(1, Math.max(0, (heat - low) / (top - low)));
  const mixed = from.map((part, index) => part + share * (to[index] - part));
  return [mixed[0], mixed[1], mixed[2], 255 * mixed[3]];
}

/** The heat at a place, between the centres of patches: bilinear, the edge continued. */
function at(heat, row, column) {
  const clamp = (place, length) => Math.min(length - 1, Math.max(0, place));
  const [top, left] = [Math.floor(row), Math.floor(column)];
  const pick = (y, x) => heat[clamp(y, heat.length)][clamp(x, heat[0].length)];
  const [down, right] = [row - top, column - left];
  return (1 - down) * ((1 - right) * pick(top, left) + right * pick(top, left + 1))
    + down * ((1 - right) * pick(top + 1, left) + right * pick(top + 1, left + 1));
}

const DETAIL = 8;

/** Draw [rows][columns] onto the whole of a canvas; null clears it. */
export function draw(canvas, heat) {
  const context = canvas.getContext("2d");
  if (heat === null) {
    context.clearRect(0, 0, canvas.width, canvas.height);
    return;
  }
  canvas.width = heat[0].length * DETAIL;
  canvas.height = heat.length * DETAIL;
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y += 1) {
    for (let x = 0; x < canvas.width; x += 1) {
      const warmth = at(heat, (y + 0.5) / DETAIL - 0.5, (x + 0.5) / DETAIL - 0.5);
      pixels.data.set(colour(warmth), 4 * (y * canvas.width + x));
    }
  }
  context.putImageData(pixels, 0, 0);
}
