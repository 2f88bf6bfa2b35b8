/** What outlives the page: who the guest is and which session is its, of one tab; the list of session servers, of all. */

/** A place for texts by name, as `sessionStorage` and `localStorage` are. It may throw; then nothing is kept. */
export interface Store {
  getItem(name: string): string | null;
  setItem(name: string, value: string): void;
  removeItem(name: string): void;
}

/** Where the client keeps what outlives it. */
export interface Storage {
  /** Of this tab alone: the guest's secret and the session. `sessionStorage` where there is one; `null` keeps nothing. */
  readonly tab?: Store | null;
  /** Of all tabs: the list of session servers. `localStorage` where there is one; `null` keeps nothing. */
  readonly shared?: Store | null;
  /** What the names begin with; `greenroom` by default. Two clients in one page that are to be kept need two. */
  readonly prefix?: string;
}

/** Names in use by clients of this page: a second client with the same names would be the same guest. */
const taken = new WeakMap<Store, Set<string>>();

/** One store of the platform, which may forbid even to look at it. */
function platform(name: "sessionStorage" | "localStorage"): Store | null {
  try {
    return (globalThis as { sessionStorage?: Store; localStorage?: Store })[name] ?? null;
  } catch {
    return null;
  }
}

/** What one client keeps. */
export class Keep {
  #tab: Store | null;
  readonly #shared: Store | null;
  readonly #prefix: string;

  constructor({ tab, shared, prefix }: Storage) {
    this.#tab = tab === undefined ? platform("sessionStorage") : tab;
    this.#shared = shared === undefined ? platform("localStorage") : shared;
    this.#prefix = prefix ?? "greenroom";
    if (this.#tab === null) return;
    const names = taken.get(this.#tab) ?? new Set();
    taken.set(this.#tab, names);
    if (names.has(this.#prefix)) this.#tab = null;
    else names.add(this.#prefix);
  }

  /** Another client of this page may have the names. */
  release(): void {
    if (this.#tab !== null) taken.get(this.#tab)?.delete(this.#prefix);
    this.#tab = null;
  }

  /** What of the tab has this name. */
  get(name: string): string | null {
    return read(this.#tab, this.#name(name));
  }

  set(name: string, value: string | null): void {
    write(this.#tab, this.#name(name), value);
  }

  getShared(name: string): string | null {
    return read(this.#shared, this.#name(name));
  }

  setShared(name: string, value: string): void {
    write(this.#shared, this.#name(name), value);
  }

  #name(name: string): string {
    return `${this.#prefix}:${name}`;
  }
}

function read(store: Store | null, name: string): string | null {
  try {
    return store?.getItem(name) ?? null;
  } catch {
    return null;
  }
}

function write(store: Store | null, name: string, value: string | null): void {
  try {
    if (value === null) store?.removeItem(name);
    else store?.setItem(name, value);
  } catch {
    // Full, or forbidden: the next page begins as a new guest, and this one goes on.
  }
}
