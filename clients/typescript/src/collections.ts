/** What is different between two states, told item by item. */

/** A way into a state: names with dots between them, or a list of names where one has a dot in it. */
export type Path = string | readonly string[];

/** The items of one collection, by key. */
type Items = ReadonlyMap<string, unknown>;

const NONE: Items = new Map();

/** Whom one subscription calls. */
export interface ItemHandlers {
  readonly add?: (item: unknown, key: string) => void;
  readonly change?: (item: unknown, key: string, before: unknown) => void;
  readonly remove?: (item: unknown, key: string) => void;
}

/** One subscription to a collection: what it knows, and whom it tells of what is different. */
export class Collection {
  #known: Items = NONE;
  readonly #path: readonly string[];

  constructor(
    path: Path,
    readonly handlers: ItemHandlers,
  ) {
    this.#path = typeof path === "string" ? path.split(".") : path;
  }

  /** Takes what is there as known, without telling anybody. */
  know(state: unknown): void {
    this.#known = itemsAt(state, this.#path);
  }

  /** The state is another one: gives the calls that say what is different, each item at most once. */
  update(state: unknown): (() => void)[] {
    const [before, items] = [this.#known, itemsAt(state, this.#path)];
    const { add, change, remove } = this.handlers;
    const calls: (() => void)[] = [];
    if (remove !== undefined) {
      for (const [key, item] of before) if (!items.has(key)) calls.push(() => remove(item, key));
    }
    for (const [key, item] of items) {
      if (!before.has(key)) {
        if (add !== undefined) calls.push(() => add(item, key));
      } else if (change !== undefined) {
        const old = before.get(key);
        if (!isEqual(old, item)) calls.push(() => change(item, key, old));
      }
    }
    this.#known = items;
    return calls;
  }
}

/**
 * The collection at `path`. A map's items have its keys. A list's items are known by their `id`, else by their `seat`,
 * where each has one and no two are alike; in any other list by where they stand.
 */
function itemsAt(state: unknown, path: readonly string[]): Items {
  let at = state;
  for (const name of path) {
    if (!isObject(at) || !Object.hasOwn(at, name)) return NONE;
    at = at[name];
  }
  if (Array.isArray(at)) {
    return keyedBy(at, "id") ?? keyedBy(at, "seat") ?? new Map(at.map((item, index) => [String(index), item]));
  }
  return isObject(at) ? new Map(Object.entries(at)) : NONE;
}

function keyedBy(list: readonly unknown[], name: string): Items | null {
  const items = new Map<string, unknown>();
  for (const item of list) {
    const key = isObject(item) && Object.hasOwn(item, name) ? item[name] : undefined;
    if (typeof key !== "string" && typeof key !== "number" && typeof key !== "bigint") return null;
    items.set(String(key), item);
  }
  return items.size === list.length ? items : null;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

/** Whether two values as they come out of MessagePack are the same, all the way down. */
export function isEqual(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true;
  if (!isObject(a) || !isObject(b)) return false;
  if (Array.isArray(a) || a instanceof Uint8Array) {
    if (a.constructor !== b.constructor) return false;
    const [left, right] = [a as ArrayLike<unknown>, b as unknown as ArrayLike<unknown>];
    if (left.length !== right.length) return false;
    for (let at = 0; at < left.length; at++) if (!isEqual(left[at], right[at])) return false;
    return true;
  }
  if (Array.isArray(b) || b instanceof Uint8Array) return false;
  const names = Object.keys(a);
  if (names.length !== Object.keys(b).length) return false;
  return names.every((name) => Object.hasOwn(b, name) && isEqual(a[name], b[name]));
}
