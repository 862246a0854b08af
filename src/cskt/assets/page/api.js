// The service: one function per operation, and one kind of error. Addresses are relative to the page's own.

/** What went wrong, in one line for people; `code` is the service's, or `unreachable`. */
export class ApiError extends Error {
  constructor(code, message, status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

const address = (path, parameters = {}) => {
  const url = new URL(`api/${path}`, document.baseURI);
  for (const [key, value] of Object.entries(parameters)) url.searchParams.append(key, value);
  return url.pathname + url.search;
};

async function fetched(path, { parameters, body, signal } = {}) {
  const options = { signal, credentials: "same-origin" };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  }
  let response;
  try {
    response = await fetch(address(path, parameters), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("unreachable", "The service does not answer. Is cskt serve still running?");
  }
  if (response.ok) return response;
  let told;
  try {
    told = (await response.json()).error;
  } catch {
    told = undefined; // a proxy's own page, say
  }
  throw new ApiError(told?.code ?? "unknown", told?.message ?? `The service answered ${response.status}.`, response.status);
}

const json = async (path, options) => (await fetched(path, options)).json();

export const readGallery = () => json("gallery");
export const search = (query, signal) => json("search", { body: query, signal });
export const explain = (text, imageId, signal) => json("explain", { body: { text, image_id: imageId }, signal });
export const readCrop = (imageId, signal) => json("crop", { parameters: { id: imageId }, signal });
export const openSession = (token) => fetched("session", { body: { token } });
export const readOriginal = async (imageId, signal) =>
  (await fetched("image", { parameters: { id: imageId }, signal })).blob();
export const thumbnailAddress = (imageId) => address("thumbnail", { id: imageId });

/** Marks as a file: {blob, name, numLeftOut}; crops that training cannot read are left out. */
export async function exportMarks(format, marks) {
  const response = await fetched("marks/export", { body: { format, marks } });
  const named = /filename="?([^";]+)"?/.exec(response.headers.get("Content-Disposition") ?? "");
  const numLeftOut = Number(response.headers.get("X-Left-Out"));
  return { blob: await response.blob(), name: named?.[1] ?? `marks.${format}`, numLeftOut };
}
