// How values are written: scores, counts, times, sizes.

export const score = (value) => value.toFixed(3);

export const count = (value) => value.toLocaleString("en");

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** A column's name as words. */
export const columnTitle = (name) => name.replaceAll("_", " ");

/** A metadata value by its column's kind. Times are UTC, less the Z that says so; whole minutes lose their seconds. */
export function value(raw, kind) {
  if (raw === null || raw === undefined) return "–";
  if (kind === "time") return String(raw).replace("T", " ").replace(/Z$/, "").replace(/:00$/, "");
  if (typeof raw === "boolean") return raw ? "yes" : "no";
  if (typeof raw === "number") return Number.isInteger(raw) ? String(raw) : String(Number(raw.toPrecision(6)));
  return String(raw);
}

export function bytes(number) {
  if (number < 1000) return `${number} B`;
  const [size, unit] = number < 1e6 ? [number / 1e3, "kB"] : [number / 1e6, "MB"];
  return `${size.toFixed(size < 10 ? 1 : 0)} ${unit}`;
}

/** The last part of a crop's name, which tells most. */
export const fileName = (imageId) => imageId.split("/").at(-1) || imageId;
