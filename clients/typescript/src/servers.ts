/** Which session servers there are, and in which order to try them. */

import { ArgumentError } from "./errors.js";
import type { Keep } from "./storage.js";
import type { SessionServer } from "./wire.js";

/** Addresses that are kept of what a server says: no cluster has more, and a list from outside needs an end. */
const LEARNED_MAX = 1024;

/** An address in the one form in which it is compared, or `null` if it is none that a WebSocket can be opened to. */
function parsed(text: string): URL | null {
  try {
    const url = new URL(text);
    const isUsable = (url.protocol === "ws:" || url.protocol === "wss:") && url.hostname !== "" && url.hash === "";
    return isUsable ? url : null;
  } catch {
    return null;
  }
}

/** The well-known session servers, and those that the cluster told of. */
export class ServerBook {
  readonly #wellKnown: readonly string[];
  #learned: readonly string[] = [];
  readonly #keep: Keep;
  /** The list is that of one cluster: another one is known by other addresses. */
  readonly #name: string;

  constructor(servers: readonly string[], keep: Keep) {
    this.#wellKnown = servers.map((text) => {
      const url = parsed(text);
      if (url === null) {
        const what = "write ws://host:port or wss://host:port";
        throw new ArgumentError(`${JSON.stringify(text)} is no address of a session server: ${what}`);
      }
      return url.href;
    });
    if (this.#wellKnown.length === 0) {
      throw new ArgumentError("there is no session server to try: give at least one address in `servers`");
    }
    this.#keep = keep;
    this.#name = `servers:${[...this.#wellKnown].sort().join(" ")}`;
    this.#learned = this.#usable((keep.getShared(this.#name) ?? "").split("\n"));
  }

  /** Those that may be used: who asked for encryption is not to be talked out of it by a list. */
  #usable(texts: Iterable<string>): string[] {
    const schemes = new Set(this.#wellKnown.map((href) => new URL(href).protocol));
    const usable = new Set<string>();
    for (const text of texts) {
      const url = parsed(text);
      if (url !== null && schemes.has(url.protocol)) usable.add(url.href);
      if (usable.size >= LEARNED_MAX) break;
    }
    return [...usable];
  }

  /** Takes a list from a session server. An empty one says nothing. */
  learn(servers: readonly SessionServer[]): void {
    const learned = this.#usable(servers.flatMap(({ urls }) => urls));
    if (learned.length === 0 || learned.join("\n") === this.#learned.join("\n")) return;
    this.#learned = learned;
    this.#keep.setShared(this.#name, learned.join("\n"));
  }

  /** Whether there is another address than `current` among what the cluster told of. */
  hasOtherThan(current: string): boolean {
    return this.#learned.some((address) => address !== current);
  }

  /**
   * One round: what the cluster told of first, then the well-known ones, each in random order; `lost` comes last, since
   * the client just lost it.
   */
  round(lost: string | null): string[] {
    const rest = this.#wellKnown.filter((address) => !this.#learned.includes(address));
    const round = [...shuffled(this.#learned), ...shuffled(rest)];
    return [...round.filter((address) => address !== lost), ...round.filter((address) => address === lost)];
  }
}

function shuffled<T>(list: readonly T[]): T[] {
  const left = [...list];
  const drawn: T[] = [];
  while (left.length > 0) drawn.push(...left.splice(Math.floor(Math.random() * left.length), 1));
  return drawn;
}
