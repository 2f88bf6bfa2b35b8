/** The recorded messages and conversations of the protocol, which every client is checked with. */

import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The root of the repository, from `clients/typescript/build/test`. */
export const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..", "..");
const vectors = join(root, "protocol", "vectors", "v1");

/** A file of vectors. Whole numbers that JSON's reader would round are `bigint`. */
export function vector(name: string): any {
  const text = readFileSync(join(vectors, name), "utf8");
  const marked = text.replace(/(?<=[:[,]\s*)-?\d{16,}(?=\s*[,}\]])/g, (digits) => `{"$int": "${digits}"}`);
  return JSON.parse(marked, (_, value) => {
    if (typeof value?.$int === "string") return BigInt(value.$int);
    if (typeof value?.$bin === "string") return bytes(value.$bin);
    return value;
  });
}

export function conversations(): string[] {
  return readdirSync(join(vectors, "conversations"))
    .map((file) => file.replace(/\.json$/, ""))
    .sort();
}

export const bytes = (hex: string): Uint8Array => new Uint8Array(Buffer.from(hex, "hex"));
export const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

/** Numbers that look like chance and are the same at each run: mulberry32. */
export function dice(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
