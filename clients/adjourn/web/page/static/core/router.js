/** Where the page is: the part of the address after `#`, so that any server of files can serve it. */
import { Signal } from "./signal.js";

/** Returns `{path: ["jobs", "a", "log"], query: URLSearchParams}`. */
export function parse(hash) {
  const [place, search = ""] = hash.replace(/^#\/?/, "").split("?");
  return { path: place.split("/").filter(Boolean).map(decoded), query: new URLSearchParams(search) };
}

export const route = new Signal(parse(location.hash));
window.addEventListener("hashchange", () => route.set(parse(location.hash)));

export function go(hash) {
  location.hash = hash;
}

/** Returns the address of a job's view. */
export function jobPath(name, tab = "") {
  return `#/${name.split("/").map(encodeURIComponent).join("/")}${tab ? `/${tab}` : ""}`;
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
