// Filters as controls and as text. The text is the truth; what the controls cannot show stays text.
//
// A selection maps a column to one of {values: [text, ...]}, {contains: text}, {from, to} (numbers or times as text,
// "" for open) and {is: boolean}.

const quoted = (text) => `'${String(text).replaceAll("'", "''")}'`;

function clauses(name, kind, chosen) {
  if (chosen.values?.length === 1) return [`${name} = ${quoted(chosen.values[0])}`];
  if (chosen.values?.length > 1) return [`${name} IN (${chosen.values.map(quoted).join(", ")})`];
  if (chosen.contains) return [`${name} LIKE ${quoted(`%${chosen.contains}%`)}`];
  if (typeof chosen.is === "boolean") return [`${name} = ${chosen.is}`];
  const literal = (text) => (kind === "time" ? quoted(text) : text);
  return [
    ...(chosen.from ? [`${name} >= ${literal(chosen.from)}`] : []),
    ...(chosen.to ? [`${name} <= ${literal(chosen.to)}`] : []),
  ];
}

/** Selection -> filter text, in the order of the columns ([{name, kind}]). */
export const compose = (selection, columns) =>
  columns.flatMap(({ name, kind }) => clauses(name, kind, selection[name] ?? {})).join(" AND ");

const TOKEN = /\s*('(?:[^']|'')*'|[\p{L}_][\p{L}\p{M}\p{Nd}_]*|-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|<=|>=|[=(),])/uy;

function tokens(text) {
  const found = [];
  const trimmed = text.trimEnd();
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < trimmed.length) {
    const match = TOKEN.exec(trimmed);
    if (!match) return null;
    found.push(match[1]);
  }
  return found;
}

const unquoted = (token) => (token?.startsWith("'") ? token.slice(1, -1).replaceAll("''", "'") : null);

function list(taken) {
  if (taken.shift() !== "(") return null;
  const values = [];
  for (;;) {
    values.push(unquoted(taken.shift()));
    const after = taken.shift();
    if (after === ")") return values.includes(null) ? null : values;
    if (after !== ",") return null;
  }
}

/** One condition off the front of `taken`, as a part of a column's selection; null if no control shows it. */
function part(kind, operator, taken) {
  if (kind === "text" && operator === "=") {
    const text = unquoted(taken.shift());
    return text === null ? null : { values: [text] };
  }
  if (kind === "text" && operator === "IN") {
    const values = list(taken);
    return values && { values };
  }
  if (kind === "text" && operator === "LIKE") {
    const inner = /^%([^%]+)%$/s.exec(unquoted(taken.shift()) ?? "");
    return inner && { contains: inner[1] };
  }
  if (kind === "boolean" && operator === "=") {
    const word = taken.shift()?.toLowerCase();
    return word === "true" || word === "false" ? { is: word === "true" } : null;
  }
  if ((kind === "number" || kind === "time") && (operator === ">=" || operator === "<=")) {
    const token = taken.shift();
    const literal = kind === "time" ? unquoted(token) : token;
    const fits = kind === "time" ? literal !== null : Number.isFinite(Number(literal));
    return fits ? { [operator === ">=" ? "from" : "to"]: literal } : null;
  }
  return null;
}

/** Filter text -> selection, or null where it says more than the controls can show. */
export function parse(text, columns) {
  const kinds = new Map(columns.map(({ name, kind }) => [name, kind]));
  const taken = tokens(text);
  if (taken === null) return null;
  const selection = {};
  while (taken.length) {
    const name = taken.shift().normalize("NFC").toLowerCase();
    const chosen = part(kinds.get(name), taken.shift()?.toUpperCase(), taken);
    const before = selection[name] ?? {};
    if (chosen === null || Object.keys(chosen).some((key) => key in before)) return null;
    selection[name] = { ...before, ...chosen };
    if (taken.length && (taken.shift().toUpperCase() !== "AND" || !taken.length)) return null;
  }
  // Choosing values and searching within them are two controls of which a column has one.
  return Object.values(selection).some((chosen) => chosen.values && chosen.contains) ? null : selection;
}
